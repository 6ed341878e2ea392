// Package objects brings the content of files from repositories to disk, each content once, verified, and keeps what is
// there within bounds.
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
//   - A held object was fetched ahead, and nobody has asked for it yet. It is complete and verified, but has no name:
//     so it is seen which of what was fetched ahead is used. Once it is asked for, or after two minutes, it gets its
//     name.
//   - An object is followed when somebody has opened it: if it is a program or a library, what the dynamic linker reads
//     of it arrives, and so do the libraries that it needs, which are followed in turn.
//   - Fresh links are second names of objects in a folder of their own, for two minutes. A kernel that looked for an
//     object in the store's folder before it arrived finds it there.
//   - A partial file holds the chunks of an object that somebody read from before it was complete, or that is not to be
//     stored. It has no name, so nothing of it outlives the process. When half of an object is read, or nobody else
//     fetches anything, the rest is fetched, and the file becomes the object.
//   - The mark says since when everything is on stable storage. After a power cut, objects younger than the mark are
//     checked against the SHA-256 recorded with each (extended attribute user.cvmfs.sha256), and dropped if they fail.
//
// # The cache
//
// The store as a cache, in more words:
//
//   - The limit is how many bytes of disk (st_blocks) objects may take, partial files and held objects included. The
//     floor is how many bytes of the file system stay free, whoever fills it. What is held goes before anything else.
//   - Admission is asked for every byte before it is fetched: by reads, fetching ahead and completing alike. At the
//     floor it says syscall.ENOSPC (SpaceError). At the limit, if nothing can be evicted, it says ErrLimit: the object
//     is then served from a partial file and not stored, so that a read never fails for the limit.
//   - The ledger is how much the objects take, by folder, so that opening a store need not look at them. It is written
//     with the mark. After a kill it is a little old: it is taken as it is, and counted afresh in the background.
//   - An image is in use while it is mounted or pinned. An object that an image in use names is never evicted:
//     unlinking what an overlay has looked up frees nothing before the overlay is unmounted.
//   - An image's last use is the time it was last mounted or unmounted: the modification time of its table's file.
//   - Eviction removes objects in the order of the last use of the latest used image that names them, those no image
//     names first, and among equals in the order of arrival. A survey is the list of what is here with that; a plan is
//     what goes next.
//   - Scrubbing reads everything again, slowly, and removes what is damaged.
//   - The owner of a store is the process that opened it last. A predecessor that still answers its last requests
//     fetches, but neither evicts nor writes the mark.
//
// # What can be relied on
//
// A name in the store's folder appears in one step, when all bytes are written and verified: files are made without a
// name (O_TMPFILE), or on file systems that can't with a temporary one elsewhere, and linked at the end. So a process
// killed at any moment leaves no wrong file. A full disk is an error that wraps syscall.ENOSPC, takes its half-written
// file with it, and leaves the store working. Removing an object is one unlink: whoever has it open keeps it.
//
// # Locks
//
// Taken in this order, never in the other direction; the rest are leaves, under which no other is taken:
//
//	eviction.mu     the plan; held for one step of eviction, some milliseconds
//	owner's lock    flock(2) on the state folder's file, for the same step, against other processes
//	heldObjects.mu  the held objects; one is given its name under it
//	partials.mu     the partial files there are
//	partial.mu      the chunks of one
//	admission.mu    bytes promised
package objects
