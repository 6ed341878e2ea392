package catalog

// Names of the files that publishers put into the roots of nested catalogs, for themselves: readers see ordinary files.
const (
	Marker     = ".cvmfscatalog"     // in each root of a nested catalog: the reference's check wants it
	AutoMarker = ".cvmfsautocatalog" // besides it where a publisher split by weight
)

// IsMarker reports whether a file name is that of a marker.
func IsMarker(name string) bool { return name == Marker || name == AutoMarker }
