// Package gc collects the garbage of repositories: revisions that nothing keeps, and the objects that only they need.
//
// The words used here:
//
//   - Kept are the newest revision, those with a tag that isn't automatic, and those that [Options] name. Automatic
//     tags (generic-…) don't keep their revisions, and go with them.
//   - An orphan is an object that no known revision names, as a publish that was cut off leaves it. It goes when it is
//     older than the grace: the publish may be begun again.
//   - The doomed are the files that a collection is about to remove.
//
// Readers of the revisions kept notice nothing. What is removed is first forgotten: a new history, reflog and manifest
// of the same revision are published, then the files go, catalogs first, so that who finds a catalog finds what it
// names. Killed anywhere, the repository is whole, and the next collection finishes.
package gc
