package installer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"cvmfs-graphdriver/bundle"
	"cvmfs-graphdriver/installer/daemonjson"
)

// FindName finds the plugin that is meant where none is named: the engine's storage driver, if it is of this project's;
// the one that is installed by a record; the only one there is, by whomever it was made; or else [DefaultName]. Of an
// engine that doesn't answer, its configuration file tells the driver.
func FindName(ctx context.Context, e *Engine, record, file string) (string, error) {
	installed := ""
	r, err := readRecord(record)
	switch {
	case errors.Is(err, fs.ErrPermission): // it is root's
	case err != nil:
		return "", err
	case r.Installed != nil:
		installed = r.Installed.Plugin
	}
	down, err := e.down(ctx)
	if err != nil {
		down = true // what can't be asked is told by others
	}
	if down {
		if driver := driverIn(file); installed == "" && driver != "" {
			return driver, nil
		}
		return orDefault(installed), nil
	}
	ours, err := e.ours(ctx)
	if err != nil {
		return "", err
	}
	if len(ours) > 0 {
		s, err := e.state(ctx)
		if err != nil {
			return "", err
		}
		if i := slices.IndexFunc(ours, func(name string) bool { return sameDriver(name, s.driver) }); i >= 0 {
			return ours[i], nil
		}
	}
	switch {
	case installed != "":
		return installed, nil
	case len(ours) > 1:
		return "", fmt.Errorf("the engine has several plugins of this project, %s: name one with --name",
			strings.Join(ours, " and "))
	case len(ours) == 1:
		return ours[0], nil
	}
	return DefaultName, nil
}

func orDefault(name string) string {
	if name == "" {
		return DefaultName
	}
	return name
}

// driverIn is the plugin that the engine's configuration file names as storage driver, or "".
func driverIn(file string) string {
	if file == "" {
		return ""
	}
	read, err := daemonjson.Read(file)
	if err != nil {
		return ""
	}
	return pluginIn(read)
}

// pluginIn is the plugin that a configuration file of the engine's names as storage driver; "" if it names a driver of
// the engine's own.
func pluginIn(file *daemonjson.File) string {
	name := file.String("storage-driver")
	if _, err := bundle.CheckName(name); err != nil {
		return ""
	}
	return name
}
