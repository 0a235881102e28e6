#!/bin/sh
# PID 1 of the initramfs: loads the modules in their order, mounts the root and hands over.
/bin/busybox mkdir -p /proc /sys /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev
for module in /modules/*.ko; do
    /bin/busybox insmod "$module" || echo "lab: insmod $module failed" >/dev/kmsg
done
tries=0
until /bin/busybox mount -t ext4 -o rw,noatime /dev/vda /root; do
    tries=$((tries + 1))
    test "$tries" -lt 50 || break
    /bin/busybox sleep 0.1
done
/bin/busybox cp /stage2 /root/lab-stage2
for folder in proc sys dev; do
    /bin/busybox mount --move "/$folder" "/root/$folder"
done
exec /bin/busybox switch_root /root /lab-stage2
