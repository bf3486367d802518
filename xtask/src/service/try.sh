#!/bin/bash
# Runs in the machine, as a service: installs, starts, upgrades, removes and purges the package. Each step says what it
# expects, and the first one that fails ends the trial.
set -u
step() { echo "@@ step $*"; }
fail() {
    echo "@@ failed: $*"
    journalctl -u enforcer -n 40 --no-pager -o short-monotonic
    systemctl status enforcer --no-pager -l
    systemctl poweroff -f
    exit 1
}
# The result of a connection to etcd's port from a process that is not the apiserver: nothing listens there.
connects() {
    local said
    said=$( (: </dev/tcp/127.0.0.1/2379) 2>&1) && { echo connected; return; }
    case "$said" in
    *"Connection refused"*) echo refused ;;
    *"Operation not permitted"*) echo denied ;;
    *) echo "$said" ;;
    esac
}
is() { [ "$(connects)" = "$1" ] || fail "$2: a connection is $(connects), not $1"; }
show() { systemctl show -P "$1" enforcer; }
until_is() {
    for _ in $(seq 150); do [ "$(show "$1")" = "$2" ] && return; sleep 0.2; done
    fail "$1 is $(show "$1"), not $2"
}
policy=/etc/enforcer/policy/control-plane-single.yaml

depmod
hostnamectl hostname cp1 2>/dev/null || hostname cp1
echo "@@ kernel $(uname -r)"
is refused "without the package"

step "install: nothing is enforced, and the service waits for a policy"
dpkg -i /root/enforcer_1.deb || fail "dpkg -i"
is refused "after the installation"
[ "$(systemctl is-enabled enforcer)" = enabled ] || fail "not enabled"
systemctl start enforcer || fail "a start without a policy is an error"
[ "$(show ActiveState)" = inactive ] || fail "started without a policy"
[ "$(show ConditionResult)" = no ] || fail "no condition"

step "start: dry-run, as an unprivileged user with three capabilities"
cp /usr/share/enforcer/policies/control-plane-single.yaml $policy
enforcer check -p /etc/enforcer/policy >/dev/null || fail "the shipped policy is not valid"
systemctl start enforcer || fail "does not start"
until_is ActiveState active
is refused "in dry-run"
pid=$(show MainPID)
[ "$(stat -c %U /proc/"$pid")" = enforcer ] || fail "runs as $(stat -c %U /proc/"$pid")"
grep -q "^CapEff:.*000000c000001000$" /proc/"$pid"/status || fail "$(grep Cap /proc/"$pid"/status)"
grep -q "^NoNewPrivs:.*1$" /proc/"$pid"/status || fail "may gain privileges"
echo "@@ status: $(show StatusText)"
case "$(show StatusText)" in "generation 1, "*attachments*) ;; *) fail "status is $(show StatusText)" ;; esac
journalctl -u enforcer -o cat --no-pager | grep -q "^warning\|^note\|^policy" || fail "nothing in the journal"
journalctl -u enforcer -o cat --no-pager | grep -q "^enforcer: \|^<[0-9]>" && fail "prefixes in the journal"
journalctl -u enforcer -p notice --no-pager -o cat | grep -q 2379 || fail "the denial has no priority"

step "an uplink that comes later is judged"
before=$(enforcer status -o json | grep -c '"where"')
ip link add eth0 type veth peer name far && ip link set eth0 up || fail "no interface"
for _ in $(seq 50); do
    after=$(enforcer status -o json | grep -c '"where"')
    [ "$after" -gt "$before" ] && break
    sleep 0.2
done
[ "$after" -gt "$before" ] || fail "$after attachments, before $before"

step "enforce by reload; a broken policy fails the reload and changes nothing"
sed -i 's/^  mode: DryRun/  mode: Enforce/' $policy
systemctl reload enforcer || fail "does not reload"
is denied "after the reload"
cp $policy /root/good.yaml
echo "nonsense: true" >>$policy
systemctl reload enforcer 2>/dev/null && fail "a broken policy is no error"
is denied "with a broken policy"
cp /root/good.yaml $policy
systemctl reload enforcer || fail "does not reload a repaired policy"

step "stop: enforcement stays"
systemctl stop enforcer || fail "does not stop"
is denied "without an agent"
enforcer status 2>&1 | grep -q "is in force without one" || fail "$(enforcer status 2>&1)"
systemctl start enforcer || fail "does not start again"
until_is ActiveState active
is denied "with the next agent"

step "detach without an agent, and start again"
systemctl stop enforcer || fail "does not stop"
enforcer detach || fail "does not detach"
is refused "after detach without an agent"
systemctl start enforcer || fail "does not start after detach"
until_is ActiveState active
is denied "after another start"

step "a process that hangs is ended by the watchdog, and another takes over"
mkdir -p /run/systemd/system/enforcer.service.d
printf '[Service]\nWatchdogSec=4\n' >/run/systemd/system/enforcer.service.d/try.conf
systemctl daemon-reload
systemctl restart enforcer || fail "does not restart"
sleep 9
pid=$(show MainPID)
[ "$(show NRestarts)" = 0 ] || fail "the watchdog ended a process that lives"
kill -STOP "$pid"
for _ in $(seq 150); do [ "$(show NRestarts)" != 0 ] && [ "$(show ActiveState)" = active ] && break; sleep 0.2; done
[ "$(show NRestarts)" = 1 ] || fail "no watchdog: $(show NRestarts) restarts"
is denied "after the watchdog"
rm -r /run/systemd/system/enforcer.service.d
systemctl daemon-reload

step "upgrade: another agent, and no moment without enforcement"
pid=$(show MainPID)
(while [ ! -e /run/upgraded ]; do [ "$(connects)" = denied ] || echo "$(connects)" >>/run/gaps; echo . >>/run/tries; done) &
dpkg -i /root/enforcer_2.deb || fail "dpkg -i of an upgrade"
until_is ActiveState active
touch /run/upgraded
wait
[ "$(show MainPID)" != "$pid" ] || fail "the old agent runs on"
[ ! -e /run/gaps ] || fail "not denied meanwhile: $(sort /run/gaps | uniq -c)"
echo "@@ upgrade: denied $(wc -l </run/tries) of $(wc -l </run/tries) times"
grep -q "mode: Enforce" $policy || fail "the upgrade changed the policy"

step "detach: nothing is enforced, and no upgrade brings it back"
enforcer detach || fail "does not detach"
is refused "after detach"
until_is ActiveState inactive
dpkg -i /root/enforcer_2.deb >/dev/null || fail "dpkg -i"
[ "$(show ActiveState)" = inactive ] || fail "started by an upgrade"
is refused "after detach and an upgrade"

step "remove: detached, with the configuration kept"
systemctl start enforcer || fail "does not start"
until_is ActiveState active
is denied "before the removal"
dpkg -r enforcer || fail "dpkg -r"
is refused "after the removal"
[ -z "$(ls -A /sys/fs/bpf/enforcer 2>/dev/null)" ] || fail "pins are left"
[ -e $policy ] && [ -e /etc/enforcer/enforcer.env ] || fail "the configuration is gone"

step "remove where no agent runs: detached, too"
dpkg -i /root/enforcer_2.deb >/dev/null || fail "dpkg -i after a removal"
systemctl start enforcer || fail "does not start"
until_is ActiveState active
systemctl stop enforcer
is denied "without an agent"
dpkg -r enforcer >/dev/null || fail "dpkg -r without an agent"
is refused "after the removal without an agent"

step "purge: nothing is left but the user"
dpkg -P enforcer || fail "dpkg -P"
for left in /etc/enforcer /var/lib/enforcer /run/enforcer /etc/systemd/system/multi-user.target.wants/enforcer.service; do
    [ ! -e $left ] || fail "$left is left"
done

echo "@@ all good"
systemctl poweroff -f
