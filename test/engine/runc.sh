# This is runc, for which it stands first in PATH, but for one thing: the process of a container, or of one more in it, starts no
# sooner than the engine reads what it says. The engine opens its ends of the two named pipes in threads of their own; where these
# come too late, for a machine is busy, all that a short-lived process has said is lost, from docker run and from docker logs.
# Lines before these set runc, the program; pid, the file with the engine's process id; and pipes, the folder with those of containers.

command='' process=init id=''
for arg; do
	case $arg in
	start | exec) command=${command:-$arg} ;;
	*.pid) process=${arg##*/} process=${process%.pid} ;; # of an exec: the pipes are named alike
	esac
	id=$arg
done

# reads tells whether the engine has a pipe open for reading. A descriptor that only names the pipe (O_PATH) isn't that.
reads() {
	for fd in "/proc/$engine/fd"/*; do
		[ "$fd" -ef "$1" ] || continue
		while read -r key value; do
			case $key$value in
			flags:01???????) ;;
			flags:*[02]) return 0 ;;
			esac
		done <"/proc/$engine/fdinfo/${fd##*/}"
	done 2>/dev/null
	return 1
}

if [ "$command" ] && read -r engine <"$pid" && [ "$engine" ]; then
	tries=0
	for pipe in "$pipes/$id/$process-stdout" "$pipes/$id/$process-stderr"; do
		# An engine that has died meanwhile, or does it otherwise, holds nothing up for long.
		while [ -p "$pipe" ] && [ -d "/proc/$engine" ] && ! reads "$pipe" && [ $tries -lt 200 ]; do
			tries=$((tries + 1))
			sleep 0.05
		done
	done
fi 2>/dev/null
exec "$runc" "$@"
