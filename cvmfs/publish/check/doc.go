// Package check holds repositories to the rules of their format.
//
// The rules are those of the reference's integrity check (CernVM-FS server, swissknife_check.cc), and others that
// publishing and replicating rely on. [Run] walks the newest revision and all with a tag: manifest, tags, catalogs,
// rows, objects. It reads as clients do, from wherever they read, and needs no publisher's folder.
//
// A fault of the repository is a [Problem], one of the rules broken somewhere; an error is what keeps the check from
// going on.
package check
