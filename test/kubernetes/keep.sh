# Runs a node for as long as standard input is open: until its test closes that, or has ended in any other way. Nothing
# of it is left then: no process, mount, control group or file. $1 is what boots it, $2 its tree, $3 a folder for what
# changes, which is removed, $4 a folder of programs.
boot=$1 tree=$2 work=$3 programs=$4
node='' groups=''
clear() {
	[ -z "$node" ] || kill -9 "$node" || true
	wait
	for _ in $(seq 300); do # until its processes have ended
		left=''
		for group in $groups; do
			find "$group" -depth -type d -exec rmdir {} ';' 2>/dev/null || true
			[ ! -e "$group" ] || left="$left $group"
		done
		[ -n "$left" ] || break
		sleep 0.2
	done
	rm -rf --one-file-system "$work"
	if [ -n "$left" ]; then
		echo "left:$left" >&2
		exit 1
	fi
}
trap clear EXIT
while read -r _ point kind _; do
	case $kind in cgroup | cgroup2) ;; *) continue ;; esac
	group=$point/cvmfs-kubernetes-$$
	mkdir "$group"
	groups="$groups $group"
	for file in cpuset.cpus cpuset.mems; do
		[ ! -e "$point/$file" ] || cat "$point/$file" >"$group/$file"
	done
done </proc/mounts
# It joins the groups before it makes namespaces, so that its group is the root of what the node sees.
# shellcheck disable=SC2016 # it is expanded there
sh -euc 'for group in $1; do echo $$ >"$group/cgroup.procs"; done
shift
exec unshare --mount --pid --ipc --uts --cgroup --fork --kill-child sh -euc "$@"' \
	join "$groups" "$boot" boot "$tree" "$work" "$programs" &
node=$!
read -r _ || true
