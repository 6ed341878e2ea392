package installer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

const stepMigrate = "migrate"

// Left is what an engine has of a storage driver that it doesn't run on any more. The engine shows none of it.
type Left struct {
	Images     []string // names that its containers were made of, sorted
	Containers []LeftContainer
}

// LeftContainer is a container of that driver.
type LeftContainer struct {
	Name    string
	Image   string // the name that it was made of, or the image's id if it has none
	Running bool   // when the engine last wrote it down
}

// FormerPlugin returns the plugin that a record says was installed here last and the engine's data folder that it lies
// in; "" for none, and where the folder isn't known.
func FormerPlugin(record string) (plugin, root string, err error) {
	r, err := readRecord(record)
	if err != nil || r.Installed == nil || r.Installed.Gone {
		return "", "", err
	}
	return r.Installed.Plugin, r.Installed.Root, nil
}

// ReadLeft reads from an engine's data folder what there is of a storage driver. It needs no engine, as one of 28 or
// newer can't start on a plugin.
func ReadLeft(root, driver string) (Left, error) {
	names, err := tagsOf(root, driver)
	if err != nil {
		return Left{}, err
	}
	folders, err := os.ReadDir(filepath.Join(root, "containers"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Left{}, err
	}
	var left Left
	for _, folder := range folders {
		var c struct {
			Name, Driver, Image string
			Config              struct{ Image string }
			State               struct{ Running bool }
		}
		err := readJSON(filepath.Join(root, "containers", folder.Name(), "config.v2.json"), &c)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return Left{}, err
		}
		if !sameDriver(c.Driver, driver) {
			continue
		}
		image := c.Config.Image
		if named := names[image]; named != "" { // made of an id
			image = named
		}
		name := strings.TrimPrefix(c.Name, "/")
		left.Containers = append(left.Containers, LeftContainer{name, image, c.State.Running})
		if !isID(image) && !slices.Contains(left.Images, image) {
			left.Images = append(left.Images, image)
		}
	}
	slices.Sort(left.Images)
	return left, nil
}

// isID reports whether a container was made of an image without a name.
func isID(image string) bool { return strings.HasPrefix(image, "sha256:") }

// tagsOf returns the names of a storage driver's images by their ids.
func tagsOf(root, driver string) (map[string]string, error) {
	folders, err := os.ReadDir(filepath.Join(root, "image"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	names := map[string]string{}
	for _, folder := range folders {
		if !sameDriver(folder.Name(), driver) {
			continue
		}
		var file struct{ Repositories map[string]map[string]string }
		err := readJSON(filepath.Join(root, "image", folder.Name(), "repositories.json"), &file)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, tags := range file.Repositories {
			for name, id := range tags {
				if was := names[id]; was == "" || name < was {
					names[id] = name
				}
			}
		}
	}
	return names, nil
}

func readJSON(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}

// TellLeft tells what of a storage driver's a migration takes along, and what it can't.
func (i *Installer) TellLeft(left Left) {
	var said []string
	if len(left.Images) > 0 {
		said = append(said, "pull what containers were made of: "+strings.Join(left.Images, ", "))
	}
	for _, c := range left.Containers {
		state := "stopped"
		if c.Running {
			state = "running"
		}
		said = append(said, fmt.Sprintf("make the container %s (%s, of %s) anew: containers don't move, and their "+
			"changes outside of volumes stay behind", c.Name, state, c.Image))
	}
	if len(said) == 0 {
		said = []string{"the plugin has no containers: no image is pulled"}
	}
	i.Tell(Event{stepMigrate, Told, strings.Join(said, "\n")})
}

// Repull pulls the images that a storage driver's containers were made of. All are tried; which ones can't be had is
// the error.
func (i *Installer) Repull(ctx context.Context, left Left) error {
	var failed []string
	for _, image := range left.Images {
		pulled, err := i.Engine.have(ctx, image)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			i.Tell(Event{stepMigrate, Failed, err.Error()})
			failed = append(failed, image)
		case pulled:
			i.Tell(Event{stepMigrate, Done, "pulled " + image})
		default:
			i.Tell(Event{stepMigrate, Unchanged, image + " is there"})
		}
	}
	if len(failed) > 0 {
		return fmt.Errorf("images can't be pulled: %s: the host is set up; pull them by hand, or run this command "+
			"again", strings.Join(failed, ", "))
	}
	return nil
}
