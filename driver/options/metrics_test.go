package options_test

import (
	"strings"
	"testing"

	"cvmfs-graphdriver/driver/options"
)

func TestPlacesOfMetricsAreRead(t *testing.T) {
	for value, want := range map[string]options.Metrics{
		"127.0.0.1:9324":  {Network: "tcp", Address: "127.0.0.1:9324"},
		" 127.9.8.7:1 ":   {Network: "tcp", Address: "127.9.8.7:1"},
		"localhost:65535": {Network: "tcp", Address: "127.0.0.1:65535"},
		"[::1]:9324":      {Network: "tcp", Address: "[::1]:9324"},
		"unix:/run/docker/plugins/metrics.sock": {
			Network: "unix", Address: "/run/docker/plugins/metrics.sock",
		},
		"0.0.0.0:9324,token=metrics/token": {
			Network: "tcp", Address: "0.0.0.0:9324", Token: "/etc/cvmfs/metrics/token",
		},
		"[::]:9324,cert=m/c.pem, key=/etc/cvmfs/m/k.pem": {
			Network: "tcp", Address: "[::]:9324", Cert: "/etc/cvmfs/m/c.pem", Key: "/etc/cvmfs/m/k.pem",
		},
		"127.0.0.1:1,token=t": {Network: "tcp", Address: "127.0.0.1:1", Token: "/etc/cvmfs/t"},
	} {
		got, err := options.Parse([]string{options.MetricsAt + "=" + value})
		if err != nil || got.Metrics != want {
			t.Errorf("%q: %+v, %v", value, got.Metrics, err)
		}
	}
}

// What others could read, what the plugin can't reach, and what is misspelt is refused, with what to write instead.
func TestPlacesOfMetricsThatAreWrongAreRefusedWithTheRemedy(t *testing.T) {
	for value, want := range map[string]string{
		"":                                     "127.0.0.1:9324",
		"9324":                                 "127.0.0.1:9324",
		"on":                                   "127.0.0.1:9324",
		"/run/metrics.sock":                    "unix:/run/docker/plugins/metrics.sock",
		"http://127.0.0.1:9324":                "127.0.0.1:9324",
		"127.0.0.1:0":                          "from 1 to 65535",
		"127.0.0.1:65536":                      "from 1 to 65535",
		"127.0.0.1:http":                       "from 1 to 65535",
		":9324":                                "0.0.0.0",
		"node7.example.org:9324":               "an IP address",
		"0.0.0.0:9324":                         "other hosts: add ,cert=FILE,key=FILE for TLS or ,token=FILE",
		"[::]:9324":                            "or use 127.0.0.1:9324",
		"192.0.2.7:9324":                       "other hosts",
		"[::ffff:192.0.2.7]:9324":              "other hosts",
		"0.0.0.0:9324,cert=c.pem":              "go together",
		"0.0.0.0:9324,key=k.pem,token=t":       "go together",
		"0.0.0.0:9324,token=":                  "the files of /etc/cvmfs alone",
		"0.0.0.0:9324,token=../passwd":         "the files of /etc/cvmfs alone",
		"0.0.0.0:9324,token=/root/token":       "the files of /etc/cvmfs alone",
		"0.0.0.0:9324,token=a,token=b":         "each once",
		"0.0.0.0:9324,user=x":                  "cert=FILE, key=FILE and token=FILE",
		"unix:/tmp/m.sock":                     "<plugin id>/metrics.sock on the host",
		"unix:m.sock":                          "<plugin id>/metrics.sock on the host",
		"unix:/run/docker/plugins/../m.sock":   "<plugin id>/metrics.sock on the host",
		"unix:/run/docker/plugins":             "<plugin id>/metrics.sock on the host",
		"unix:/run/docker/plugins/plugin.sock": "taken",

		"unix:/run/docker/plugins/m.sock,token=t":                   "leave them out",
		"unix:/run/docker/plugins/" + strings.Repeat("m", 90):       "at most 100",
		"127.0.0.1:9324,cert=c.pem,key=k.pem,token=t,cert=c2":       "each once",
		"127.0.0.1:9324 token=t":                                    "from 1 to 65535",
		"0.0.0.0:9324,cert=/etc/cvmfs/../shadow,key=k.pem,token=tk": "the files of /etc/cvmfs alone",
	} {
		err := options.Check(options.MetricsAt + "=" + value)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "cvmfs.metrics="+value) {
			t.Errorf("%q: %v, want %q", value, err, want)
		}
	}
}

func TestOutsideOfThePluginMetricsAndFilesMayBeAnywhere(t *testing.T) {
	for value, want := range map[string]options.Metrics{
		"unix:/run/cvmfs-snapshotter/../m.sock": {Network: "unix", Address: "/run/m.sock"},
		"[::]:9324,token=/etc/secret":           {Network: "tcp", Address: "[::]:9324", Token: "/etc/secret"},
		"[::]:9324,token=metrics/token":         {Network: "tcp", Address: "[::]:9324", Token: "/etc/cvmfs/metrics/token"},
	} {
		got, err := options.ParseHost([]string{options.MetricsAt + "=" + value})
		if err != nil || got.Metrics != want {
			t.Errorf("%q: %+v, %v", value, got.Metrics, err)
		}
	}
	for value, want := range map[string]string{
		"unix:m.sock":                          "an absolute path outside of /run/docker/plugins",
		"unix:/run/docker/plugins/m.sock":      "an absolute path outside of /run/docker/plugins",
		"unix:/run/" + strings.Repeat("m", 99): "at most 100",
		"[::]:9324":                            "other hosts",
		"[::]:9324,token=":                     "the name of a file",
		"9324":                                 "unix:/run/cvmfs-snapshotter/metrics.sock",
	} {
		_, err := options.ParseHost([]string{options.MetricsAt + "=" + value})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", value, err, want)
		}
	}
}

// Whatever is taken is either on this host or guarded.
func FuzzMetrics(f *testing.F) {
	for _, seed := range []string{"127.0.0.1:1", "0.0.0.0:1,token=t", "unix:/run/docker/plugins/m", "[::1%lo]:5,cert=a,key=b"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, value string) {
		o, err := options.Parse([]string{options.MetricsAt + "=" + value})
		m := o.Metrics
		if err != nil {
			return
		}
		local := m.Network == "unix" && strings.HasPrefix(m.Address, options.SocketFolder+"/") ||
			strings.HasPrefix(m.Address, "127.") || strings.HasPrefix(m.Address, "[::1") ||
			strings.HasPrefix(m.Address, "[::ffff:127.")
		if !local && m.Token == "" && (m.Cert == "" || m.Key == "") {
			t.Errorf("%q: %+v", value, m)
		}
		for _, file := range []string{m.Cert, m.Key, m.Token} {
			if file != "" && (!strings.HasPrefix(file, options.FilesFolder+"/") || strings.Contains(file, "/../")) {
				t.Errorf("%q: file %s", value, file)
			}
		}
	})
}
