# From docs/fleet.md: VMs of /srv/vms on clients whose KVM is fast.
job "lethe-web" {
  datacenters = ["*"]
  type        = "service"

  constraint {
    attribute = "${meta.kvm}"
    value     = "fast"
  }

  group "vm" {
    count = 2

    restart {
      attempts = 3
      interval = "10m"
      delay    = "5s"
      mode     = "fail"
    }

    task "web" {
      driver = "raw_exec"

      config {
        command = "/usr/bin/lethe"
        args = [
          "run", "${NOMAD_TASK_DIR}/web.toml", "--non-interactive",
          "--name", "web-${NOMAD_ALLOC_INDEX}",
        ]
      }

      # Its sockets: one directory an allocation.
      env {
        XDG_RUNTIME_DIR = "${NOMAD_SECRETS_DIR}"
      }

      template {
        destination = "local/web.toml"
        data        = <<-EOT
          [memory]
          size = "512M"
          auto = true
          [boot]
          kernel = "/srv/vms/vmlinuz"
          cmdline = "console=ttyS0 root=/dev/vda ro"
          on_reboot = "exit"
          stop_timeout_ms = 20000
          [[disk]]
          path = "/srv/vms/web.img"
          read_only = true
        EOT
      }

      kill_signal  = "SIGTERM"
      kill_timeout = "30s"

      resources {
        cpu        = 1000
        memory     = 256
        memory_max = 704
      }
    }
  }
}
