# Boots a Debian with systemd: $1 is its tree, which stays as it is, $2 a folder for what changes, $3 a folder of
# programs. It wants mount, pid, ipc, uts and cgroup namespaces of its own, and shares the network.
tree=$1 work=$2 programs=$3
root=$work/root
mount --make-rprivate /
mkdir -p "$work/upper" "$work/work" "$root" "$work/lib"
mount -t overlay -o "lowerdir=$tree,upperdir=$work/upper,workdir=$work/work" overlay "$root"
# What containers and the snapshotter keep lies on the machine's own file system.
cp -a "$root/var/lib/." "$work/lib"
mount --bind "$work/lib" "$root/var/lib"
mkdir -p "$root/srv/programs" "$root/srv/test"
mount --bind "$programs" "$root/srv/programs"
mount --bind "$work/test" "$root/srv/test"
hostname node

mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
cp /proc/mounts "$work/mounts"
while read -r _ point kind options _; do
	case $kind in cgroup | cgroup2) ;; *) continue ;; esac
	if [ "$point" != /sys/fs/cgroup ] && ! mountpoint -q "$root/sys/fs/cgroup"; then
		mount -t tmpfs -o mode=755 tmpfs "$root/sys/fs/cgroup"
	fi
	mkdir -p "$root$point"
	if [ "$kind" = cgroup2 ]; then
		mount -t cgroup2 cgroup2 "$root$point"
		continue
	fi
	case ,$options, in
	*,name=systemd,*) mount -t cgroup -o none,name=systemd,xattr cgroup "$root$point" ;;
	*) mount -t cgroup -o "$(basename "$point")" cgroup "$root$point" ;;
	esac
done <"$work/mounts"

mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in null zero full random urandom tty fuse kmsg; do
	touch "$root/dev/$device"
	mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
# kubelet sets these, which are the whole machine's: it gets files of its own.
for setting in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys \
	kernel/keys/root_maxbytes; do
	cat "/proc/sys/$setting" >"$work/setting"
	cp "$work/setting" "$work/$(basename "$setting")"
	mount --bind "$work/$(basename "$setting")" "$root/proc/sys/$setting"
done
for unit in systemd-sysctl systemd-udevd systemd-udev-trigger systemd-modules-load docker; do
	ln -sf /dev/null "$root/etc/systemd/system/$unit.service"
done
ln -sf /dev/null "$root/etc/systemd/system/docker.socket"
echo 'nameserver 127.0.0.1' >"$root/etc/resolv.conf"
echo '127.0.0.1 localhost node' >"$root/etc/hosts"
: >"$root/etc/machine-id"

cd "$root"
mkdir -p old
pivot_root . old
umount --lazy /old
rmdir /old
mount --make-rshared / # as systemd has it
exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system \
	--unit=multi-user.target --log-target=journal-or-kmsg --show-status=0 </dev/null >/dev/null
