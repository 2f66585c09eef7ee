// Numbers and times as people read them.

export const NONE = "–";
const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

/** Of parameters and the like: `1.7 M`. */
export function count(value) {
  if (!value) return "";
  const [size, unit] = value >= 1e9 ? [1e9, " B"] : value >= 1e6 ? [1e6, " M"] : value >= 1e3 ? [1e3, " K"] : [1, ""];
  return `${number(value / size, value / size < 10 && size > 1 ? 1 : 0)}${unit}`;
}

export function bytes(count) {
  if (count === null || count === undefined) return NONE;
  let n = 0;
  let value = count;
  while (value >= 1024 && n < UNITS.length - 1) [value, n] = [value / 1024, n + 1];
  return `${value >= 100 || n === 0 ? Math.round(value) : value.toFixed(1)} ${UNITS[n]}`;
}

export function number(value, digits = 0) {
  if (value === null || value === undefined || Number.isNaN(value)) return NONE;
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

export const percent = (value) => (value === null || value === undefined ? NONE : `${number(value, 1)} %`);

/** Seconds, such as `3 d 4 h`, `12 min`, `340 ms`. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return NONE;
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86_400)} d ${Math.floor((seconds % 86_400) / 3600)} h`;
}

export const milliseconds = (value) =>
  value === null || value === undefined ? NONE : value === 0 ? "0" : value < 10 ? `${value.toFixed(1)} ms` : duration(value / 1000);

const two = (n) => String(n).padStart(2, "0");

/** `seconds` since the epoch: the time of today, the date before that. */
export function when(seconds) {
  const date = new Date(seconds * 1000);
  const time = `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
  if (date.toDateString() === new Date().toDateString()) return time;
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())} ${time}`;
}

export const plural = (count, one, many = `${one}s`) => `${number(count)} ${count === 1 ? one : many}`;
