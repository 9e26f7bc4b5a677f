#!/usr/bin/env bash
# Tries the Debian package on a Debian of its own: installs it, runs its units under a systemd that is booted in
# namespaces, and removes it. Needs root, debootstrap, and `cargo install cargo-deb --locked`; takes some minutes.
#
#     docs/packaging/try.sh [PACKAGE.deb]
set -euo pipefail
cd "$(dirname "$0")/../.."

folder=$PWD/target/try
root=$folder/root
group=tidemill-try-$$

# The first process of the namespaces for mounts, processes, the network and control groups: what it mounts or starts is
# not seen outside, and ends with it.
boot() {
    mount --make-rprivate /
    mount --bind "$root" "$root"
    mount -t proc proc "$root/proc"
    mount -t tmpfs tmpfs "$root/run"
    mount -t tmpfs tmpfs "$root/tmp"
    mount -t sysfs -o ro sysfs "$root/sys"
    if [ "$(stat -fc %T /sys/fs/cgroup)" = cgroup2fs ]; then
        mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
    else
        mount -t tmpfs tmpfs "$root/sys/fs/cgroup"
        mkdir -p "$root/sys/fs/cgroup/systemd"
        mount -t cgroup -o none,name=systemd cgroup "$root/sys/fs/cgroup/systemd"
    fi
    ip link set lo up
    # Not chroot(8): a process in one may not make the namespace of users that PrivateUsers= asks for.
    cd "$root"
    mkdir -p former
    pivot_root . former
    umount -l /former
    exec env -i container=try PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd
}

if [ "${1:-}" = --boot ]; then
    boot
fi

if [ $# -gt 0 ]; then
    package=$1
else
    docs/packaging/deb.sh
    package=$(ls -t target/debian/tidemill_*.deb | head -n 1)
fi

# shellcheck source=/dev/null
. /etc/os-release
if [ ! -e "$folder/made" ]; then
    rm -rf "$root" && mkdir -p "$root"
    debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,logrotate,netcat-openbsd,procps \
        "$VERSION_CODENAME" "$root" >"$folder/debootstrap.log"
    for unit in getty.target console-getty.service systemd-logind.service systemd-udevd.service apt-daily.timer \
        apt-daily-upgrade.timer; do
        ln -sf /dev/null "$root/etc/systemd/system/$unit"
    done
    touch "$folder/made"
fi

# Systemd keeps its groups below one that is made for it.
hierarchy=/sys/fs/cgroup
[ "$(stat -fc %T $hierarchy)" = cgroup2fs ] || hierarchy=$hierarchy/systemd
mkdir "$hierarchy/$group"
bash -c 'echo $$ >"$1"; shift; exec "$@"' - "$hierarchy/$group/cgroup.procs" \
    timeout --kill-after=5 240 unshare --mount --pid --fork --uts --ipc --net --cgroup --kill-child \
    "$BASH" "$0" --boot >"$folder/boot.log" 2>&1 &
guard=$!
finish() {
    kill -KILL "$guard" 2>/dev/null || true
    wait "$guard" 2>/dev/null || true
    find "$hierarchy/$group" -depth -type d -exec rmdir {} \; 2>/dev/null || true
}
trap finish EXIT

within() { # seconds, what, command …
    local until=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $until ] || { echo "not within time: $what" && exit 1; }
        sleep 0.1
    done
}
inside() { nsenter -t "$init" -m -p -i -n -u -C -r -w "$@"; }
prop() { inside systemctl show --value --property "$2" "$1"; }
ok() { printf 'ok: %s\n' "$*"; }
fail() { printf 'FAILED: %s\n' "$*"; inside journalctl --no-pager -n 30 || true; exit 1; }

init=
find_init() { init=$(pgrep -P "$(pgrep -P "$guard")") && [ "$(inside systemctl is-system-running)" = running ]; }
within 60 "the machine has started" find_init
ok "a Debian $VERSION_CODENAME runs in namespaces"

cp "$package" "$root/var/tmp/tidemill.deb"
inside dpkg -i /var/tmp/tidemill.deb >"$folder/dpkg.log"
inside tidemill proxy --config /etc/tidemill/proxy.toml --check >/dev/null
inside sh -c 'test -e /usr/share/man/man1/tidemill.1.gz && test -e /usr/share/bash-completion/completions/tidemill'
ok "the package is installed; its proxy.toml is valid"

options='listen = ["127.0.0.1:9001"]\naccess-log = "/var/log/tidemill/echo.log"\nraw = true\n'
inside sh -c "printf '$options' >/etc/tidemill/echo.toml && tidemill echo --config /etc/tidemill/echo.toml --check" \
    >/dev/null
echoes() { [ "$(inside sh -c 'echo hello | nc -N -w 5 127.0.0.1 9001')" = hello ]; }

inside systemctl start tidemill@echo
[ "$(prop tidemill@echo ActiveState)" = active ] || fail "the unit is not active"
echoes || fail "nothing is echoed"
[ "$(inside ps -o user= -p "$(prop tidemill@echo MainPID)")" != root ] || fail "it runs as root"
ok "tidemill@echo is active once it listens, echoes, and does not run as root"

# logrotate renames the file, and the reload makes the server open its name again.
rotate='/var/log/tidemill/*.log { rotate 2\nnocompress\npostrotate\nsystemctl reload tidemill@echo\nendscript\n}'
inside sh -c "printf '$rotate\n' >/etc/logrotate.d/tidemill && logrotate --force /etc/logrotate.d/tidemill"
reopened() { echoes && inside test -s /var/log/tidemill/echo.log; }
within 10 "the access log is opened again" reopened
inside test -s /var/log/tidemill/echo.log.1 || fail "the old access log is gone"
[ "$(prop tidemill@echo ActiveState)" = active ] || fail "the unit ended with the reload"
ok "logrotate rotates the access log, and a reload opens the new one"

# The journal knows which lines are warnings: a wrong option in the file, found by the reload, is one.
inside sh -c "echo 'nonsense = 1' >>/etc/tidemill/echo.toml"
inside systemctl reload tidemill@echo
warned() { [ "$(inside journalctl -u tidemill@echo -p warning -o cat --no-pager | grep -c nonsense)" -ge 1 ]; }
within 10 "the journal has a warning about the option" warned
inside sh -c "printf '$options' >/etc/tidemill/echo.toml"
echoes || fail "it does not serve with its former options"
ok "the journal has warnings as such: $(inside journalctl -u tidemill@echo -p warning -o cat --no-pager | tail -n 1)"

# A process that hangs is ended by the watchdog (SIGABRT) and started again.
inside mkdir -p /etc/systemd/system/tidemill@echo.service.d
inside sh -c "printf '[Service]\nWatchdogSec=2s\n' >/etc/systemd/system/tidemill@echo.service.d/soon.conf"
inside systemctl daemon-reload
inside systemctl restart tidemill@echo
before=$(prop tidemill@echo MainPID)
inside kill -STOP "$before"
other() { [ "$(prop tidemill@echo NRestarts)" -ge 1 ] && [ "$(prop tidemill@echo ActiveState)" = active ]; }
within 30 "the watchdog starts it again" other
echoes || fail "nothing is echoed after the watchdog"
ok "a process that hangs is started again by the watchdog"

inside systemctl stop tidemill@echo
[ "$(prop tidemill@echo Result)" = success ] || fail "it did not stop cleanly: $(prop tidemill@echo Result)"
ok "it stops cleanly"

# The socket unit listens alone; the first connection starts the server, which gets the socket without `listen`.
inside sh -c "echo 'raw = true' >/etc/tidemill/echo.toml"
inside systemctl start tidemill@echo.socket
[ "$(prop tidemill@echo ActiveState)" != active ] || fail "the service runs before its first connection"
echoes || fail "nothing is echoed through the unit of sockets"
[ "$(prop tidemill@echo ActiveState)" = active ] || fail "the service is not active"
inside systemctl stop tidemill@echo.socket tidemill@echo
ok "tidemill@echo.socket starts the server with its first connection"

inside systemd-analyze security --no-pager tidemill@echo | tail -n 1
inside dpkg --purge tidemill >>"$folder/dpkg.log"
inside sh -c '! test -e /usr/bin/tidemill && ! test -e /usr/lib/systemd/system/tidemill@.service'
ok "the package is removed"
