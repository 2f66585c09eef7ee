"""Homebrew's formula: mlxd in an environment of its own, with a plist and a unit of ours.

`brew services` makes a plist or a unit by itself, but knows neither notify nor a watchdog nor the
time that a stop may take. It takes one that lies in the formula's folder under the name that the
formula gives its service: that is the one of packaging/launchd or packaging/systemd.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from mlxd import __version__
from mlxd.service import launchd, systemd
from mlxd.service.facts import Facts
from mlxd.service.layout import LABEL, UNIT, Layout

FILE = "mlxd.rb"
PYTHON = "3.13"
"""Of the formula, and of the packages that packaging/homebrew/*.txt lock."""

BREW = Layout(
    program=PurePosixPath("/brew.opt_bin/mlxd"),
    policies=PurePosixPath("/brew.pkgetc/policies"),
    state=PurePosixPath("/brew.var/mlxd"),
    logs=PurePosixPath("/brew.var/log/mlxd"),
)
"""The first part of each path is a method of the formula, which knows Homebrew's folders."""


_FORMULA = """\
class Mlxd < Formula
  include Language::Python::Virtualenv

  desc "Daemon that serves language models with Apple's MLX"
  homepage "https://github.com/ml-explore/mlx"
  url "file:///mlxd-@version@.tar.gz"
  sha256 "@sum@"
  license "Apache-2.0"

  depends_on "python@@python@"

  on_macos do
    depends_on arch: :arm64
    depends_on macos: :sonoma
  end

  # Libraries in wheels name themselves by @rpath, and some have no room for a longer name.
  preserve_rpath

  # The test serves on the loopback address; all that is installed comes in `fetch`.
  allow_network_access! :test

  def builder
    buildpath/"build/bin/python"
  end

  # Only what packaging/homebrew/*.txt name by its hash: wheels, and sdnotify, which has none.
  def fetch
    system "python@python@", "-m", "venv", "build"
    system builder, "-m", "pip", "install", "--require-hashes", "--only-binary=:all:",
                    "--requirement=packaging/homebrew/build.txt"
    system builder, "-m", "pip", "wheel", "--require-hashes", "--only-binary=:all:",
                    "--no-binary=sdnotify", "--no-deps", "--no-build-isolation",
                    "--requirement=packaging/homebrew/requirements.txt", "--wheel-dir=wheels"
  end

  def install
    # An older Homebrew has no phase of its own for it.
    fetch unless (buildpath/"wheels").directory?

    system builder, "-m", "pip", "wheel", "--no-index", "--no-cache-dir", "--no-deps",
                    "--no-build-isolation", "--wheel-dir=wheels", "."
    virtualenv_create(libexec, "python@python@", system_site_packages: false)
    system builder, "-m", "pip", "--python=#{libexec}/bin/python", "install",
                    "--no-index", "--no-cache-dir", "--no-deps", *buildpath.glob("wheels/*.whl")

    # The commands look where the service does, unless they are told otherwise.
    (bin/"mlxd").write_env_script libexec/"bin/mlxd",
                                  MLXD_POLICIES: "${MLXD_POLICIES:-#{pkgetc}/policies}",
                                  MLXD_STATE:    "${MLXD_STATE:-#{var}/mlxd}"

    # Files that were edited stay; what is new for them lies beside them as *.default.
    pkgetc.install "policies", "etc/mlxd.env"
    (var/"mlxd").mkpath
    (var/"log/mlxd").mkpath

    (prefix/"@label@.plist").write <<~XML
@plist@
    XML
    (prefix/"@unit@.service").write <<~SYSTEMD
@service@
    SYSTEMD
  end

  def caveats
    <<~EOS
      mlxd serves on @address@, with the policies in
        #{pkgetc}/policies
      An edit of them is in force as soon as it is saved.

      Put model folders under ~/mlx-models, or name other folders in models.yaml there.
      Until there is one, a small model answers that knows mlxd and nothing else.
    EOS
  end

  service do
    name macos: "@label@", linux: "@unit@"
  end

  test do
    port = free_port
    (testpath/"policies").mkpath
    pid = spawn bin/"mlxd", "serve", "--policies", "#{testpath}/policies",
                "--state", "#{testpath}/state", "--port", port.to_s
    begin
      curl = "curl --silent --fail --retry 60 --retry-delay 1 --retry-connrefused"
      question = '{"model": "mlxd-guide", "prompt": "What port does mlxd use?", "stream": false}'
      answer = JSON.parse(shell_output("#{curl} --data '#{question}' http://127.0.0.1:#{port}/api/generate"))
      assert_operator answer["eval_count"], :>, 0
      refute_empty answer["response"]
    ensure
      Process.kill "TERM", pid
      Process.wait pid
    end
  end
end
"""

_INDENT = " " * 6
_FOLDERS = re.compile(r"/brew\.(\w+)(?=/)")


def formula(facts: Facts, layout: Layout = BREW) -> dict[str, str]:
    """The layout's paths begin with a method of the formula, as BREW's do.

    Its source is nowhere: no file can hold a sum over itself. `make tap` puts one in.
    """
    values = {
        "version": __version__,
        "sum": "0" * 64,
        "python": PYTHON,
        "label": LABEL,
        "unit": UNIT,
        "address": f"http://{facts.address}",
        "plist": _heredoc(launchd.agent(facts, layout)[launchd.FILE]),
        "service": _heredoc(systemd.user(facts, layout)[systemd.SERVICE]),
    }
    return {FILE: re.sub(r"@([a-z]+)@", lambda found: values[found[1]], _FORMULA)}


def _heredoc(content: str) -> str:
    """Lines of a squiggly heredoc: what Ruby would read in them is escaped, paths are its own."""
    escaped = re.sub(r"\\|#(?=[{$@])", r"\\\g<0>", content.expandtabs(2))
    lines = _FOLDERS.sub(r"#{\1}", escaped).splitlines()
    return "\n".join(f"{_INDENT}{line}" if line else "" for line in lines)
