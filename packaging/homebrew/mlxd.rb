class Mlxd < Formula
  include Language::Python::Virtualenv

  desc "Daemon that serves language models with Apple's MLX"
  homepage "https://github.com/ml-explore/mlx"
  url "file:///mlxd-0.1.0.tar.gz"
  sha256 "0000000000000000000000000000000000000000000000000000000000000000"
  license "Apache-2.0"

  depends_on "python@3.13"

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
    system "python3.13", "-m", "venv", "build"
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
    virtualenv_create(libexec, "python3.13", system_site_packages: false)
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

    (prefix/"dev.mlxd.plist").write <<~XML
      <?xml version="1.0" encoding="UTF-8"?>
      <!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
      <plist version="1.0">
      <dict>
        <key>Label</key>
        <string>dev.mlxd</string>
        <key>ProgramArguments</key>
        <array>
          <string>#{opt_bin}/mlxd</string>
          <string>serve</string>
        </array>
        <key>EnvironmentVariables</key>
        <dict>
          <key>PATH</key>
          <string>/usr/bin:/bin:/usr/sbin:/sbin</string>
          <key>MLXD_POLICIES</key>
          <string>#{pkgetc}/policies</string>
          <key>MLXD_STATE</key>
          <string>#{var}/mlxd</string>
          <key>MLXD_LOGS</key>
          <string>#{var}/log/mlxd</string>
        </dict>
        <key>RunAtLoad</key>
        <true/>
        <key>KeepAlive</key>
        <dict>
          <key>SuccessfulExit</key>
          <false/>
        </dict>
        <key>ThrottleInterval</key>
        <integer>10</integer>
        <key>ExitTimeOut</key>
        <integer>77</integer>
        <key>ProcessType</key>
        <string>Interactive</string>
        <key>AbandonProcessGroup</key>
        <false/>
        <key>SoftResourceLimits</key>
        <dict>
          <key>NumberOfFiles</key>
          <integer>10240</integer>
        </dict>
        <key>StandardOutPath</key>
        <string>#{var}/log/mlxd/mlxd.err.log</string>
        <key>StandardErrorPath</key>
        <string>#{var}/log/mlxd/mlxd.err.log</string>
        <key>LimitLoadToSessionType</key>
        <array>
          <string>Aqua</string>
          <string>Background</string>
          <string>LoginWindow</string>
          <string>StandardIO</string>
          <string>System</string>
        </array>
      </dict>
      </plist>
    XML
    (prefix/"mlxd.service").write <<~SYSTEMD
      # Written by `mlxd service render`. Change it with `systemctl --user edit mlxd`.

      [Unit]
      Description=mlxd, language models with MLX
      # A daemon that dies young so often that not even its own hold helps: by then it serves without
      # models. `systemctl reset-failed mlxd` lets it start again.
      StartLimitIntervalSec=1300
      StartLimitBurst=20

      [Service]
      Type=notify
      NotifyAccess=main
      ExecStart=#{opt_bin}/mlxd serve
      # Unlike a SIGHUP it waits for the outcome, and fails if the policies are refused.
      ExecReload=#{opt_bin}/mlxd policy reload
      Restart=on-failure
      # The start itself takes the rest of the 5 s.
      RestartSec=4
      # Arguments or policies that are refused: the same start would fail again.
      RestartPreventExitStatus=2
      WatchdogSec=30
      # All that a drain may take.
      TimeoutStopSec=77
      # After the watchdog's SIGABRT there is nothing to drain.
      TimeoutAbortSec=10
      # SIGTERM is for the daemon, which ends its workers; what is left then is killed.
      KillMode=mixed
      # A worker that the kernel kills for want of memory is replaced; the daemon serves on.
      OOMPolicy=continue
      # A core of a worker holds a whole model, and what was asked of it.
      LimitCORE=0
      UMask=0077
      Environment=MLXD_POLICIES=#{pkgetc}/policies
      Environment=MLXD_STATE=#{var}/mlxd

      NoNewPrivileges=yes
      LockPersonality=yes
      RestrictNamespaces=yes
      RestrictRealtime=yes
      RestrictSUIDSGID=yes
      RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
      SystemCallArchitectures=native
      SystemCallFilter=@system-service
      SystemCallFilter=~@privileged
      SystemCallErrorNumber=EPERM

      [Install]
      WantedBy=default.target
    SYSTEMD
  end

  def caveats
    <<~EOS
      mlxd serves on http://127.0.0.1:11435, with the policies in
        #{pkgetc}/policies
      An edit of them is in force as soon as it is saved.

      Put model folders under ~/mlx-models, or name other folders in models.yaml there.
      Until there is one, a small model answers that knows mlxd and nothing else.
    EOS
  end

  service do
    name macos: "dev.mlxd", linux: "mlxd"
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
