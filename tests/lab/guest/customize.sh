#!/bin/sh
# mmdebstrap customize hook: the newer kernel and QEMU, the lab's own settings, then disk and boot files.
# $1: the new root; $2: suite; $3: folder of wheels; $4: folder for the results; $5: disk size; then
# the packages to take from backports. The suite's own kernel stays installed beside the newer one.
set -eu
root=$1 suite=$2 wheels=$3 out=$4 size=$5
shift 5

chroot "$root" apt-get install -y --no-install-recommends -t "$suite-backports" "$@"

for wheel in "$wheels"/*.whl; do
    python3 -m zipfile -e "$wheel" "$root/usr/lib/python3/dist-packages"
done

echo gmemd-lab >"$root/etc/hostname"
printf '127.0.0.1 localhost gmemd-lab\n::1 localhost\n' >"$root/etc/hosts"
: >"$root/etc/fstab"
: >"$root/etc/machine-id"
chroot "$root" passwd -d root
for unit in prometheus.service prometheus-node-exporter.service apt-daily.timer \
    apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service \
    fstrim.timer; do
    if test -e "$root/usr/lib/systemd/system/$unit"; then
        chroot "$root" systemctl disable "$unit"
    fi
done
chroot "$root" systemctl mask serial-getty@ttyS0.service getty@tty1.service systemd-timesyncd.service \
    systemd-firstboot.service systemd-logind.service

mkdir -p "$out/boot" "$out/modules"
cp "$root"/boot/vmlinuz-* "$out/boot/"
rm -f "$root"/usr/lib/modules/*/vmlinuz "$root"/usr/lib/modules/*/System.map
cp -r "$root"/usr/lib/modules/* "$out/modules/"
cp "$root/usr/bin/busybox" "$out/busybox"

rm -rf "$root"/boot/vmlinuz-* "$root"/boot/initrd.img-* "$root"/var/lib/apt/lists/* \
    "$root"/var/cache/apt/*
# A bind mount without what is mounted below it: /proc and /sys stay out of the disk.
bare=$(mktemp -d)
mount --bind "$root" "$bare"
mke2fs -q -t ext4 -L gmemd-lab -O ^has_journal -m 0 -d "$bare" "$out/disk.img" "$size"
umount "$bare"
rmdir "$bare"
chmod -R a+rX "$out"
