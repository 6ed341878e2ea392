package check

import "fmt"

// The rules a repository is held to. Most are those of the reference's integrity check (CernVM-FS server,
// swissknife_check.cc); the others are what publishing and replicating rely on.
const (
	RuleSignature  = "signature"   // the manifest is there, and signed by who may publish
	RuleWhitelist  = "whitelist"   // the whitelist is not over
	RuleManifest   = "manifest"    // the manifest's other fields agree with the root catalog
	RuleMetainfo   = "metainfo"    // the metainfo object is there, and JSON
	RuleReflog     = "reflog"      // the reflog is the one of the manifest, and lists what the manifest names
	RuleHistory    = "history"     // the tags are in order; trunk is the newest revision
	RuleAltPaths   = "altpaths"    // the alternative names that the manifest promises are there
	RuleCatalog    = "catalog"     // a catalog is there, undamaged and readable
	RuleSize       = "size"        // a catalog has the size that is said of it
	RulePrefix     = "root prefix" // a catalog is that of the folder it hangs at
	RuleRoot       = "root row"    // the row of a catalog's root agrees with the parent's row of it
	RuleMounts     = "mounts"      // folders flagged as mounts and the lists of nested catalogs agree
	RuleTree       = "tree"        // each row is in a folder of its catalog, at the place its hash says
	RuleStatistics = "statistics"  // the counters are right
	RuleRow        = "row"         // a row has a name, a link count, a known type and flags to match
	RuleMarker     = "marker"      // .cvmfscatalog is in the roots of nested catalogs, and nowhere else
	RuleContent    = "content"     // files have content, and nothing else has
	RuleChunks     = "chunks"      // chunks cover their file
	RuleLinks      = "links"       // groups of hard links are whole, alike and within one folder
	RuleFolder     = "folder"      // folders count their subfolders
	RuleSpecial    = "special"     // special files have neither size nor target
	RuleObject     = "object"      // an object is there, and is what its name and its row say
	RuleLayer      = "layer"       // records and infos of layers can be read, and are those of their layers
)

// Problem is a fault of a repository.
type Problem struct {
	Rule string // one of the above
	At   string // the file of the repository or the path in its tree
	Text string
}

// String is the problem as one line.
func (p Problem) String() string { return fmt.Sprintf("%s: %.500q: %s", p.Rule, p.At, p.Text) }
