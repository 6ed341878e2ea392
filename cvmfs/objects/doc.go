// Package objects brings the content of files from repositories to disk, each content once, verified.
//
// The words used here:
//
//   - A stored object is what a repository's server holds under a digest: the bytes of a file or of a chunk of one,
//     compressed or not. Download gets one.
//   - An Object is the recipe of a file's content: a stored object or a row of chunks. Its name is made from the recipe
//     alone, so equal content has one name in all images and repositories.
//   - A Table lists the objects of one image, on disk and in memory. An Index finds an object in all tables, by its
//     name or by its node id, a number for the kernel's use. A Ref is an object where a table names it.
//   - A Store is the folder of objects that are here: plain files under their names, complete and verified, or absent.
//   - A flight is a fetch under way. Whoever wants the same content meanwhile waits for it; it ends when nobody waits
//     any more.
//   - Fresh links are second names of objects in a folder of their own, for two minutes. A kernel that looked for an
//     object in the store's folder before it arrived finds it there.
//   - A partial file holds the chunks of a big object that somebody read from before it was complete. It has no name,
//     so nothing of it outlives the process.
//   - The mark says since when everything is on stable storage. After a power cut, objects younger than the mark are
//     checked against the SHA-256 recorded with each (extended attribute user.cvmfs.sha256), and dropped if they fail.
//
// # What can be relied on
//
// A name in the store's folder appears in one step, when all bytes are written and verified: files are made without a
// name (O_TMPFILE), or on file systems that can't with a temporary one elsewhere, and linked at the end. So a process
// killed at any moment leaves no wrong file. A full disk is an error that wraps syscall.ENOSPC, takes its half-written
// file with it, and leaves the store working.
package objects
