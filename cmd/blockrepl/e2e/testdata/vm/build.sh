#!/bin/sh
# build.sh OUT PROGRAM - a kernel and an initramfs for the virtual machine of
# TestKernelClientOutlivesItsMaster: Debian's cloud kernel with the modules that
# are wanted, busybox, nbd-client and e2fsprogs of this host, and PROGRAM.
# Needs apt with lists, dpkg-deb, cpio, and `make deps`.
set -eu
out=$1 program=$2
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$out"
cd "$out"

kernel=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -1)
for p in "$kernel" busybox-static; do
	ls "${p}"_*.deb >/dev/null 2>&1 || apt-get -o APT::Sandbox::User=root -q download "$p" >&2
	dpkg-deb -x "${p}"_*.deb unpacked
done
release=$(ls unpacked/lib/modules)
cp "unpacked/boot/vmlinuz-$release" vmlinuz

rm -rf root
mkdir -p root/bin root/sbin root/lib root/lib64 root/modules root/proc root/sys root/dev root/mnt root/tmp root/etc
cp unpacked/bin/busybox root/bin/busybox
for applet in $(root/bin/busybox --list); do [ -e "root/bin/$applet" ] || ln -s busybox "root/bin/$applet"; done

# Programs of this host with the libraries they name.
for p in nbd-client mke2fs e2fsck; do
	path=$(command -v $p)
	rm -f "root/bin/$p"
	cp -L "$path" "root/sbin/$p"
	ldd "$path" | sed -n 's/.*=> \(\/[^ ]*\) .*/\1/p; s/^[[:space:]]*\(\/lib64[^ ]*\) .*/\1/p' | while read -r lib; do
		case $lib in /lib64/*) cp -nL "$lib" root/lib64/ ;; *) cp -nL "$lib" root/lib/ ;; esac
	done
done
cp "$program" root/sbin/blockrepl

# In the order of their dependencies; what the kernel has built in has no file.
n=10
for m in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci failover net_failover virtio_net nbd \
	crc16 crc32c_generic libcrc32c mbcache jbd2 ext4; do
	file=$(find "unpacked/lib/modules/$release" -name "$m.ko*" | head -1)
	[ -n "$file" ] || continue
	case $file in
	*.xz) xz -dc "$file" >root/modules/$n-$m.ko ;;
	*.zst) zstd -qdc "$file" >root/modules/$n-$m.ko ;;
	*) cp "$file" root/modules/$n-$m.ko ;;
	esac
	n=$((n + 1))
done
cp "$here/init.sh" root/init
chmod 755 root/init
(cd root && find . | LC_ALL=C sort | cpio -o -H newc -R 0:0 --quiet) | gzip -1 >initrd
echo "kernel $release"
