package daemonjson

import (
	"encoding/json"
	"strconv"
	"strings"
)

// newest stands for the rules of the newest engine.
const newest = 1 << 30

// major is the number that the rules of an engine's version depend on, as 20 of 20.10.24+dfsg1. A version that isn't
// understood is taken for the newest.
func major(version string) int {
	digits, _, _ := strings.Cut(strings.TrimPrefix(version, "v"), ".")
	n, err := strconv.Atoi(digits)
	if err != nil || n <= 0 {
		return newest
	}
	return n
}

// A shape says whether a value is what the engine's decoder wants for a key. null always is.
type shape struct {
	name string
	fits func(value json.RawMessage) bool
}

// decodes is the shape of what decodes to a T.
func decodes[T any](name string) shape {
	return shape{name, func(value json.RawMessage) bool { return json.Unmarshal(value, new(T)) == nil }}
}

var (
	anything = decodes[any]("anything")
	boolean  = decodes[bool]("true or false")
	integer  = decodes[int64]("a whole number")
	str      = decodes[string]("a string")
	strs     = decodes[[]string]("a list of strings")
	strMap   = decodes[map[string]string]("an object of strings")
	boolMap  = decodes[map[string]bool]("an object of true and false")
)

// key is one that some engine takes. The bounds are versions, as [major] gives them: from since on, before until; 0 is
// no bound.
type key struct {
	shape        shape
	since, until int
}

// keys are those of the engines from 20.10 to 28.5, by the flags in cmd/dockerd/{config,config_unix,options}.go and the
// fields in daemon/config of their sources. What the engine wants of a value beyond its shape is left to the engine.
var keys = func() map[string]key {
	m := map[string]key{}
	add := func(s shape, since, until int, names string) {
		for name := range strings.FieldsSeq(names) {
			m[name] = key{s, since, until}
		}
	}
	add(boolean, 0, 0, `cri-containerd debug experimental icc init ip-forward ip-masq ip6tables iptables ipv6 live-restore
		no-new-privileges raw-logs rootless selinux-enabled tls tlsverify userland-proxy`)
	add(boolean, 28, 0, `allow-direct-routing ip-forward-no-drop`)
	add(integer, 0, 0, `cpu-rt-period cpu-rt-runtime max-concurrent-downloads max-concurrent-uploads max-download-attempts mtu
		network-control-plane-mtu network-diagnostic-port shutdown-timeout`)
	add(integer, 0, 26, `oom-score-adjust`)
	add(str, 0, 0, `api-cors-header bip bridge cgroup-parent containerd containerd-namespace data-root default-cgroupns-mode
		default-gateway default-gateway-v6 default-ipc-mode default-runtime deprecated-key-path exec-root
		fixed-cidr fixed-cidr-v6
		group host-gateway-ip init-path ip log-driver log-level metrics-addr pidfile seccomp-profile storage-driver
		swarm-default-advertise-addr tlscacert tlscert tlskey userland-proxy-path userns-remap`)
	add(str, 0, 24, `cluster-advertise cluster-store graph`)
	add(str, 25, 0, `log-format`)
	add(str, 28, 0, `bip6`)
	add(strs, 0, 0, `allow-nondistributable-artifacts authorization-plugins dns dns-opts dns-search exec-opts hosts
		insecure-registries labels node-generic-resources registry-mirrors storage-opts`)
	add(strs, 25, 0, `cdi-spec-dirs`)
	add(strs, 28, 0, `host-gateway-ips`)
	add(strMap, 0, 0, `log-opts`)
	add(strMap, 0, 24, `cluster-store-opts`)
	add(boolMap, 0, 0, `features`)
	add(anything, 0, 0, `builder default-address-pools default-shm-size default-ulimits runtimes`)
	add(anything, 24, 0, `default-network-opts`)
	// Members of proxies.
	add(anything, 23, 0, `http-proxy https-proxy no-proxy`)
	// Names of flags that the engine lets pass for keys, and then takes no notice of.
	add(anything, 0, 0, `add-runtime authorization-plugin config-file containerd-plugins-namespace
		default-address-pool default-ulimit dns-opt exec-opt help host insecure-registry label
		log-opt node-generic-resource
		registry-mirror restart storage-opt version`)
	add(anything, 0, 24, `cluster-store-opt`)
	add(anything, 23, 0, `validate`)
	add(anything, 24, 0, `default-network-opt`)
	add(anything, 25, 0, `cdi-spec-dir`)
	add(anything, 27, 0, `feature`)
	return m
}()

// taken reports whether an engine takes a key.
func taken(name string, major int) bool {
	k, ok := keys[name]
	return ok && major >= k.since && (k.until == 0 || major < k.until)
}

// flat are the keys whose value is an object of the user's. Of any other object the engine looks at the members as if
// they stood beside it, when it searches for unknown keys.
var flat = map[string]bool{
	"builder": true, "cluster-store-opts": true, "default-network-opts": true, "default-ulimits": true,
	"features": true,
	"log-opts": true, "runtimes": true,
}
