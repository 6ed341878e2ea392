// Package sink puts the layers of images into repositories.
//
// The words used here:
//
//   - A sink is a place for layers, the target of a conversion: a repository of our own publisher ("native:DIR"), one
//     of a release manager machine ("cvmfs_server:FQRN"), or an ordinary folder that is brought into a repository by
//     other means ("dir:DIR").
//   - A transaction collects what is to be put there. Others see all of it after Commit, or nothing.
//   - A layer lies in a folder of its own, given by its path in the repository. Whiteouts stay the files they are in
//     the archive (".wh.NAME"). A file ".cvmfscatalog" in it makes the folder a nested catalog.
//   - The record beside a layer, "<path>.record.json", says what a catalog can't (package thin).
//
// A folder is filled by package layertar, which has the rules of what is taken from an archive, refused, or left out
// with a note. Nothing is lost silently: notes are in the Stats, and what a repository or a composed image has no place
// for is refused.
package sink
