# Makes systemd the first process of the namespaces that it is called in, on the host's own files,
# without changing any of them:
#
#   systemd_boot.sh WORK LIBRARY SITE PYTHON
#
# WORK is an empty folder. What tests are to put in place lies in WORK/files; of the host, /opt/mlxd
# then shows a folder with the package (LIBRARY), the installed packages (SITE) and the interpreter's
# prefix (PYTHON; empty: it is used where it is).
set -eu
work=$1 library=$2 site=$3 python=$4

mount -t tmpfs -o mode=0755 tmpfs "$work"/layers
mkdir "$work"/layers/upper "$work"/layers/work
mount -t overlay overlay "$work"/root \
    -o "lowerdir=/,upperdir=$work/layers/upper,workdir=$work/layers/work"
cd "$work"/root
# Not what a daemon of the host's has: folders of the layer below cannot become a dynamic user's.
rm -rf etc/mlxd srv/mlxd var/lib/mlxd var/lib/private/mlxd var/log/mlxd var/log/private/mlxd

mount -t proc -o nosuid,nodev,noexec proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs sys
mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 sys/fs/cgroup
for folder in run tmp etc/systemd/system; do
    mount -t tmpfs -o mode=0755,nosuid,nodev tmpfs "$folder"
done
chmod 1777 tmp

mount -t tmpfs -o mode=0755,nosuid tmpfs dev
for device in null zero full random urandom tty; do
    touch dev/$device
    mount --bind /dev/$device dev/$device
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 devpts dev/pts
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd

umask 022
mkdir -p opt/mlxd/library opt/mlxd/site opt/mlxd/python srv/mlxd/models
mount --bind "$library" opt/mlxd/library
mount --bind "$site" opt/mlxd/site
[ -z "$python" ] || mount --bind "$python" opt/mlxd/python
cp -R "$work"/files/. .
mkdir old

pivot_root . old
umount -l old
mount --make-rshared /  # else the files of LoadCredential are empty
exec env -i PATH=/usr/bin:/bin container=test SYSTEMD_UNIT_PATH=/etc/systemd/system \
    SYSTEMD_GENERATOR_PATH=/opt/mlxd/no-generators \
    "$(command -v systemd || echo /lib/systemd/systemd)" --system --unit=idle.target \
    --log-target=console --log-level=info --show-status=no
