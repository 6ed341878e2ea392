// Package publish writes CernVM-FS repositories: it turns archives of layers into objects and catalogs, signs what it
// publishes, and names revisions by tags. Package gc collects what nothing needs any more, package check holds a
// repository to the rules of the format, package storage is where the files lie.
//
// The words used here:
//
//   - A publisher's folder holds everything about one repository: its settings, its keys, and, unless the objects go to
//     a store elsewhere, the tree a web server serves. It belongs to one process at a time; others are refused by name.
//   - The storage is where readers find the repository's files: a folder or an S3 bucket (packages storage and s3).
//   - A draft is the next manifest in the making: from a transaction, from other tags, from a collection.
//   - A transaction collects changes to the newest revision. Its commit makes the next revision; until then readers see
//     nothing of it, and what a transaction that was cut off left is removed by the next.
//   - A layer is one archive's tree, put below a path of its own as a nested catalog. Whiteouts stay the files they
//     are.
//   - The leftover of a layer is what its archive says and catalogs have no place for.
//   - The reflog lists each root catalog, certificate, tag database and metainfo object ever published.
//
// # Order
//
// Objects are immutable and named by their content; the few mutable files are replaced whole. What refers to an object
// is stored after it, and after both were brought to the disk: objects, nested catalogs from the bottom up, the root
// catalog, the tag database, the reflog, and last the manifest. Killed anywhere, the repository is at its last
// revision.
//
// The formats are those of the CernVM-FS server; what its integrity check demands, package check demands.
package publish
