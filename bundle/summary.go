package bundle

import "cvmfs-graphdriver/rootfs"

// Summary is what a bundle is, what it asks of a host, and what can be set.
type Summary struct {
	rootfs.Build
	Packed       int64           `json:"packed,omitempty"` // bytes of the archive
	SHA256       string          `json:"sha256,omitempty"` // of the archive
	Unpacked     int64           `json:"unpacked"`         // bytes of all files
	Interface    []string        `json:"interface"`
	Capabilities []string        `json:"capabilities"`
	Network      string          `json:"network"`
	Devices      []rootfs.Device `json:"devices"`
	Mounts       []rootfs.Mount  `json:"mounts"`
	Propagated   string          `json:"propagatedMount"`
	Settings     []Setting       `json:"settings"`
}

// Setting is what `docker plugin set` changes.
type Setting struct {
	Name        string `json:"name"`
	Default     string `json:"default"`
	Description string `json:"description"`
}

// Summary returns the bundle's.
func (b *Bundle) Summary() Summary {
	s := Summary{
		Build: b.Build, Unpacked: b.Unpacked(), Interface: b.Config.Interface.Types,
		Capabilities: b.Config.Linux.Capabilities, Network: b.Config.Network.Type, Devices: b.Config.Linux.Devices,
		Mounts: b.Config.Mounts, Propagated: b.Config.PropagatedMount,
	}
	if b.Archive != nil {
		s.Packed, s.SHA256 = b.Archive.Size, b.Archive.SHA256
	}
	add := func(name, value, description string, settable []string) {
		if len(settable) > 0 {
			s.Settings = append(s.Settings, Setting{name, value, description})
		}
	}
	for _, m := range s.Mounts {
		add(m.Name, m.Source, m.Description, m.Settable)
	}
	for _, d := range s.Devices {
		add(d.Name, d.Path, d.Description, d.Settable)
	}
	for _, e := range b.Config.Env {
		add(e.Name, e.Value, e.Description, e.Settable)
	}
	return s
}
