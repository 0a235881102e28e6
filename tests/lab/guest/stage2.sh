#!/bin/sh
# First process on the lab's root: mounts the share and the checkout, then becomes the agent, or
# systemd with the agent as a unit. The share decides: it holds agent.sh and the command.
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH
mount -t tmpfs -o mode=755,nosuid,nodev tmpfs /run
mkdir -p /run/lab /run/lab-checkout
mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,cache=none share /run/lab
mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=262144,cache=mmap checkout /run/lab-checkout
# shellcheck source=/dev/null
. /run/lab/settings
mkdir -p "$LAB_CHECKOUT" /var/lib/lab/upper /var/lib/lab/work
mount -t overlay -o lowerdir=/run/lab-checkout,upperdir=/var/lib/lab/upper,workdir=/var/lib/lab/work \
    checkout "$LAB_CHECKOUT"

if test "$LAB_SYSTEMD" = 1; then
    mkdir -p /run/systemd/system
    # What a first boot, hardware and log-ins need is most of the time of an emulated boot.
    for unit in systemd-udev-trigger.service systemd-udev-load-credentials.service \
        systemd-modules-load.service kmod-static-nodes.service modprobe@.service \
        getty.target getty-static.service sys-kernel-debug.mount sys-kernel-tracing.mount \
        systemd-hwdb-update.service systemd-binfmt.service \
        proc-sys-fs-binfmt_misc.automount; do
        ln -s /dev/null "/run/systemd/system/$unit"
    done
    touch /etc/.updated /var/.updated
    echo 0123456789abcdef0123456789abcdef >/etc/machine-id
    # As udev's rule would.
    chgrp kvm /dev/kvm
    chmod 660 /dev/kvm
    cp /run/lab/lab.target /run/lab/lab-command.service /run/systemd/system/
    exec /usr/lib/systemd/systemd --unit=lab.target
fi

hostname gmemd-lab
ip link set lo up
mkdir -p /dev/pts /dev/shm /sys/fs/cgroup
mount -t devpts -o gid=5,mode=620 devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ln -sf /proc/self/fd /dev/fd
ln -sf fd/0 /dev/stdin
ln -sf fd/1 /dev/stdout
ln -sf fd/2 /dev/stderr
echo "+cpuset +memory +hugetlb" >/sys/fs/cgroup/cgroup.subtree_control
sh /run/lab/agent.sh
sync
poweroff -f
