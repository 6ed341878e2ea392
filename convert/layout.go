package convert

import (
	"cmp"
	"fmt"
	"path"
	"strings"

	"cvmfs-graphdriver/convert/source"
	"cvmfs-graphdriver/cvmfs/catalog"
)

const (
	metadataFolder = "/.metadata"
	stateName      = "docker2cvmfs.json"
	manifestName   = "manifest.json"
	profileName    = "start-profile"
	unusedFile     = metadataFolder + "/docker2cvmfs-unused.json"
	duccLayers     = "/.layers"
	duccRoot       = "layerfs"
)

// Layout says where in a repository layers lie. The zero value is "/layers/DIGEST".
type Layout struct {
	Subdirectory string // "": layers
	DUCC         bool   // /.layers/<first two>/DIGEST/layerfs
}

// ParseLayout reads a layout's name and the subdirectory of the plain one.
func ParseLayout(name, subdirectory string) (Layout, error) {
	l := Layout{Subdirectory: strings.Trim(subdirectory, "/"), DUCC: name == "ducc"}
	switch {
	case name != "" && name != "layers" && name != "ducc":
		return l, fmt.Errorf("layout %.50q: want layers or ducc", name)
	case l.DUCC && l.Subdirectory != "":
		return l, fmt.Errorf("the layout of DUCC has its own folder: leave the subdirectory %.200q out", subdirectory)
	case l.Subdirectory != "" && path.Clean("/"+l.Subdirectory) != "/"+l.Subdirectory:
		return l, fmt.Errorf("subdirectory %.200q: want a path within the repository", subdirectory)
	case strings.HasPrefix("/"+l.Subdirectory+"/", metadataFolder+"/"):
		return l, fmt.Errorf("subdirectory %.200q: %s holds what is told of images: choose another folder",
			subdirectory, metadataFolder)
	}
	return l, nil
}

// Folder is what all layers lie below.
func (l Layout) Folder() string {
	if l.DUCC {
		return duccLayers
	}
	return "/" + cmp.Or(l.Subdirectory, "layers")
}

// Path is where the layer of a digest lies.
func (l Layout) Path(hex string) string {
	if l.DUCC {
		return duccLayers + "/" + hex[:2] + "/" + hex + "/" + duccRoot
	}
	return l.Folder() + "/" + hex
}

// markers are the files that make catalogs of the folders above a layer.
func (l Layout) markers(hex string) []string {
	if !l.DUCC {
		return nil
	}
	return []string{duccLayers + "/" + catalog.Marker, duccLayers + "/" + hex[:2] + "/" + catalog.Marker}
}

// whole is the folder to remove with a layer.
func (l Layout) whole(layer string) string {
	if l.DUCC {
		return path.Dir(layer)
	}
	return layer
}

// FolderPrefix is what the sink "dir:DIR" leaves out of layers' paths: with DUCC's layout DIR is the repository's root.
func (l Layout) FolderPrefix() string {
	if l.DUCC {
		return "/"
	}
	return l.Folder()
}

// metadataOf is the folder of an image's metadata. An image that is in no registry is known by its digest alone.
func metadataOf(image *source.Image) string {
	parsed, err := image.Reference.Parsed()
	if err != nil {
		return metadataFolder + "/local/" + image.Manifest.Config.Digest.String()
	}
	registry := parsed.Context().RegistryStr()
	return metadataFolder + "/" + registry + "/" + parsed.Context().RepositoryStr() + separator(parsed.Identifier()) +
		parsed.Identifier()
}

// separator stands between a repository and its tag or digest.
func separator(identifier string) string {
	if strings.Contains(identifier, ":") {
		return "@"
	}
	return ":"
}
