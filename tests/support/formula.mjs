// Runs a formula in a Ruby made for WebAssembly; prints what came of it as JSON.
// node formula.mjs FORMULA HOMEBREW, in a folder where the packages are.
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { join } from "node:path";

const [formula, homebrew] = process.argv.slice(2);
const here = createRequire(join(process.cwd(), "package.json"));
const { DefaultRubyVM } = here("@ruby/wasm-wasi/dist/node");
const program = await readFile(here.resolve("@ruby/4.0-wasm-wasi/dist/ruby+stdlib.wasm"));
const { vm } = await DefaultRubyVM(await WebAssembly.compile(program));
for (const file of [homebrew, formula]) {
  vm.eval(await readFile(file, "utf-8"));
}
process.stdout.write(vm.eval("told").toString());
