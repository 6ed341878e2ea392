package bundle

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"

	"cvmfs-graphdriver/rootfs"
)

// Check reports whether the bundle is as this version of the project makes them: the entries there must be and no
// other, each of its mode, and a config.json that asks for no right and offers no setting that [rootfs.PluginConfig]
// does not.
func (b *Bundle) Check() error {
	if err := b.checkEntries(); err != nil {
		return fmt.Errorf("check plugin bundle %s for %s: %w", b.Build.Version, b.Build.Arch, err)
	}
	if err := b.checkConfig(); err != nil {
		return fmt.Errorf("check plugin bundle %s for %s: %s: %w", b.Build.Version, b.Build.Arch, configName, err)
	}
	return nil
}

func (b *Bundle) checkEntries() error {
	want, err := contents(b.Build, nil)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range b.entries {
		if !slices.ContainsFunc(want, func(w Entry) bool { return w.Name == e.Name }) {
			errs = append(errs, fmt.Errorf("%q doesn't belong there", e.Name))
		}
	}
	for _, w := range want {
		switch e := b.entry(w.Name); {
		case e == nil:
			errs = append(errs, fmt.Errorf("%q is missing", w.Name))
		case e.Mode != w.Mode:
			errs = append(errs, fmt.Errorf("%q has mode %v and should have %v", e.Name, e.Mode, w.Mode))
		}
	}
	return errors.Join(errs...)
}

// checkConfig reads config.json as the engine does, save that nothing may be there that this version doesn't know.
func (b *Bundle) checkConfig() error {
	d := json.NewDecoder(bytes.NewReader(b.ConfigJSON()))
	d.DisallowUnknownFields()
	var got rootfs.Config
	if err := d.Decode(&got); err != nil {
		return err
	}
	want := rootfs.PluginConfig(b.Build)
	var errs []error
	for _, c := range []struct {
		what      string
		got, want any
	}{
		{"entrypoint", got.Entrypoint, want.Entrypoint},
		{"interface", got.Interface, want.Interface},
		{"network", got.Network, want.Network},
		{"propagatedMount", got.PropagatedMount, want.PropagatedMount},
	} {
		if !reflect.DeepEqual(c.got, c.want) {
			errs = append(errs, fmt.Errorf("%s is %.200q and should be %q", c.what, fmt.Sprint(c.got),
				fmt.Sprint(c.want)))
		}
	}
	errs = append(errs,
		within("capability", got.Linux.Capabilities, want.Linux.Capabilities, func(*string) {}),
		within("device", got.Linux.Devices, want.Linux.Devices, func(d *rootfs.Device) { d.Description = "" }),
		within("mount", got.Mounts, want.Mounts, func(m *rootfs.Mount) { m.Description = "" }),
		within("env", got.Env, want.Env, func(e *rootfs.Env) { e.Description = "" }),
	)
	return errors.Join(errs...)
}

// within reports what of got isn't in want, descriptions apart.
func within[T any](what string, got, want []T, plain func(*T)) error {
	var errs []error
	for _, g := range got {
		plain(&g)
		if !slices.ContainsFunc(want, func(w T) bool {
			plain(&w)
			return reflect.DeepEqual(g, w)
		}) {
			errs = append(errs, fmt.Errorf("asks for %s %.200q, which no plugin of ours needs", what,
				fmt.Sprintf("%+v", g)))
		}
	}
	return errors.Join(errs...)
}
