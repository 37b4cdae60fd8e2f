#!/bin/busybox sh
# init.sh - /init of the virtual machine. It attaches the volume by nbd-client,
# then by `blockrepl attach`, and asks the host to kill the master in the middle
# of each: it prints "VM-ASK what" and reads the answer from the console. The
# servers' ports are in the kernel's command line as ports=A,B,C.
/bin/busybox mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1
export PATH=/sbin:/bin LD_LIBRARY_PATH=/lib
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmp /tmp
for m in /modules/*.ko; do insmod "$m" || echo "insmod $m failed"; done
ip link set lo up
ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0
host=10.0.2.2
ports=$(sed 's/.*ports=\([0-9,]*\).*/\1/' /proc/cmdline)
first=${ports%%,*}

leave() { echo "VM-EXIT $1"; sync; echo o >/proc/sysrq-trigger; sleep 60; }
fail() { echo "VM-FAIL $*"; dmesg | tail -20; leave 1; }
ask() { echo "VM-ASK $*"; read -r answer; }
# files DIR FROM TO: small files, each fsynced before its sum is noted
files() {
	i=$2
	while [ "$i" -lt "$3" ]; do
		dd if=/dev/urandom of="$1/f$i" bs=4k count=$((i % 8 + 1)) conv=fsync 2>/dev/null || return 1
		(cd "$1" && sha256sum "f$i") >>/tmp/sums || return 1
		i=$((i + 1))
	done
}
check() { (cd /mnt && sha256sum -c /tmp/sums >/tmp/checked) || fail "$1: $(grep -v OK /tmp/checked)"; echo "VM-SAY $1: $(wc -l </tmp/sums) files are as they were"; }

uname -r | sed 's/^/VM-SAY kernel /'

# 1. nbd-client; the master dies; a new attach elsewhere and the journal replays.
/sbin/nbd-client $host "$first" /dev/nbd0 -N 'vol0?client=vm&token=1' -b 512 -timeout 30 || fail "attach by nbd-client"
/sbin/mke2fs -q -t ext4 /dev/nbd0 || fail mke2fs
mount -t ext4 /dev/nbd0 /mnt || fail mount
files /mnt 0 40 || fail "write files"
ask kill
port=$answer
umount -l /mnt
/sbin/nbd-client -d /dev/nbd0
/sbin/nbd-client $host "$port" /dev/nbd1 -N 'vol0?client=vm&token=2' -b 512 -timeout 30 || fail "attach to port $port"
mount -t ext4 /dev/nbd1 /mnt || fail "mount after the fail-over"
check "after nbd-client moved"
files /mnt 40 60 || fail "write files at the new master"
umount /mnt || fail umount
/sbin/e2fsck -fn /dev/nbd1 || fail e2fsck
/sbin/nbd-client -d /dev/nbd1

# 2. blockrepl attach; the file system stays mounted while the master dies.
ask mend
servers=$(echo "$ports" | sed "s/\([0-9]*\)/$host:\1/g; s/,/ /g")
# shellcheck disable=SC2086
/sbin/blockrepl attach /dev/nbd2 vol0 $servers --client vm --takeover >/tmp/attach.log 2>&1 &
attach=$!
n=0
until [ "$(cat /sys/block/nbd2/size)" -gt 0 ]; do
	n=$((n + 1))
	[ $n -lt 100 ] || fail "attach: $(cat /tmp/attach.log)"
	usleep 200000
done
mount -t ext4 /dev/nbd2 /mnt || fail "mount by attach"
check "by attach"
(files /mnt 60 160 && echo done >/tmp/written) &
writer=$!
usleep 500000
ask kill
wait $writer
[ -e /tmp/written ] || fail "a write failed over the fail-over: $(cat /tmp/attach.log)"
check "after attach moved"
umount /mnt || fail umount
/sbin/e2fsck -fn /dev/nbd2 || fail e2fsck
dmesg | grep -iE 'I/O error|EXT4-fs error|aborted' | grep nbd2 && fail "the kernel saw an error"
kill -TERM $attach
wait $attach || fail "attach did not detach: $(cat /tmp/attach.log)"
grep -c . /tmp/sums | sed 's/^/VM-SAY files in all: /'
leave 0
