package options

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path"
	"strconv"
	"strings"
)

// Folders of the plugin that the host sees too.
const (
	// SocketFolder is, on the host, the folder of the same name below which the engine keeps the plugin's socket.
	SocketFolder = "/run/docker/plugins"
	// FilesFolder is the host's CernVM-FS configuration.
	FilesFolder = "/etc/cvmfs"
)

// Metrics says where metrics are served; the zero value is nowhere. For the plugin, files are in FilesFolder and
// sockets in SocketFolder.
type Metrics struct {
	Network   string // "unix" or "tcp"
	Address   string // a path, or an IP address and a port
	Cert, Key string // files of TLS; "" is none
	Token     string // file of the bearer token that has to be shown; "" is none
}

// place is where a driver runs, and so what files it sees.
type place struct {
	socket string // as an example
	all    bool   // it sees those of the whole host
}

var (
	thePlugin = place{socket: SocketFolder + "/metrics.sock"}
	theHost   = place{socket: "/run/cvmfs-snapshotter/metrics.sock", all: true}
)

// forms are the forms of an address there are.
func (p place) forms() string {
	return "want HOST:PORT with the host localhost or an IP address, as in 127.0.0.1:9324, or unix:" + p.socket
}

// metricsIn makes the reader of [MetricsAt] for a place.
func metricsIn(p place) func(*Options, string) error {
	return func(o *Options, value string) (err error) {
		o.Metrics, err = p.parse(value)
		return err
	}
}

// parse reads where metrics are served: ADDRESS[,cert=FILE,key=FILE][,token=FILE].
func (p place) parse(value string) (m Metrics, err error) {
	fields := strings.Split(value, ",")
	if m.Network, m.Address, err = p.address(strings.TrimSpace(fields[0])); err != nil {
		return Metrics{}, err
	}
	files := map[string]*string{"cert": &m.Cert, "key": &m.Key, "token": &m.Token}
	for _, field := range fields[1:] {
		name, file, _ := strings.Cut(strings.TrimSpace(field), "=")
		if files[name] == nil || *files[name] != "" {
			return Metrics{}, fmt.Errorf("%.50q: after the address come cert=FILE, key=FILE and token=FILE, each once", field)
		}
		if *files[name], err = p.file(file); err != nil {
			return Metrics{}, fmt.Errorf("%s: %w", name, err)
		}
	}
	return m, m.check()
}

// check refuses to show metrics, which name images and servers, to whoever can reach the address.
func (m Metrics) check() error {
	if (m.Cert == "") != (m.Key == "") {
		return errors.New("cert=FILE and key=FILE go together")
	}
	if m.Network == "unix" {
		if m.Cert != "" || m.Token != "" {
			return errors.New("a unix socket is open to root alone and takes no certificate and no token: leave them out")
		}
		return nil
	}
	at, err := netip.ParseAddrPort(m.Address)
	if err != nil {
		return fmt.Errorf("%s: %w", m.Address, err)
	}
	if !at.Addr().IsLoopback() && m.Cert == "" && m.Token == "" {
		return fmt.Errorf("%s can be reached from other hosts: add ,cert=FILE,key=FILE for TLS or ,token=FILE for a bearer "+
			"token, better both, or use 127.0.0.1:%d", m.Address, at.Port())
	}
	return nil
}

// address reads an address.
func (p place) address(text string) (network, address string, err error) {
	if file, ok := strings.CutPrefix(text, "unix:"); ok {
		absolute := path.IsAbs(file)
		file = path.Clean(file)
		switch {
		case !p.all && (path.Dir(file) != SocketFolder || path.Base(file) == "plugin.sock"):
			return "", "", fmt.Errorf("%.100s: of the plugin's folders the host sees %s, and plugin.sock in it is taken: want "+
				"unix:%[3]s, which is %[2]s/<plugin id>/metrics.sock on the host", text, SocketFolder, p.socket)
		case p.all && (!absolute || path.Dir(file) == SocketFolder): // Docker takes a socket there for a plugin's
			return "", "", fmt.Errorf("%.100s: want an absolute path outside of %s, as in unix:%s", text, SocketFolder,
				p.socket)
		}
		const longest = 100 // of a socket's path, about (unix(7))
		if len(file) > longest {
			return "", "", fmt.Errorf("unix:%.50s…: a socket's path has at most %d characters", file, longest)
		}
		return "unix", file, nil
	}
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		return "", "", errors.New(p.forms())
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", "", fmt.Errorf("port %.20q: want a number from 1 to 65535", port)
	}
	if strings.EqualFold(host, "localhost") {
		host = "127.0.0.1" // the plugin has no /etc/hosts
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return "", "", fmt.Errorf("host %.50q: %s; all addresses are 0.0.0.0 or [::]", host, p.forms())
	}
	return "tcp", net.JoinHostPort(ip.String(), port), nil
}

// file reads the name of a file, from FilesFolder on unless it is absolute.
func (p place) file(name string) (string, error) {
	file := name
	if !path.IsAbs(file) {
		file = FilesFolder + "/" + file
	}
	file = path.Clean(file)
	switch {
	case name == "" && p.all:
		return "", errors.New("want the name of a file")
	case !p.all && !strings.HasPrefix(file, FilesFolder+"/") || name == "":
		return "", fmt.Errorf("%.100q: the plugin sees the files of %s alone: put it there, below a folder that only root "+
			"can read", name, FilesFolder)
	}
	return file, nil
}
