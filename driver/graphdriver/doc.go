// Package graphdriver is the Docker engine's face of a node: its storage-driver plugin protocol,
// docker.graphdriver/1.0, and what belongs to an engine's life. A [Server] decodes a call, a [Driver] does it with what
// package node offers.
//
// The words:
//
//   - Init is the engine's first call, with which its life begins. Its arguments are on disk, as engines don't repeat
//     it to a plugin that was restarted.
//   - An open layer has been asked for by Get more often than given back by Put. Its record is an attribute of the
//     layer's folder, trusted.cvmfs-graphdriver.open; it isn't synced, for it means nothing after a reboot. Init
//     detaches the mounts of another generation, and lets the others count for one Get: that of the container which
//     outlived the former engine.
//   - An idle layer is one that nobody uses any more and that stays mounted for a moment.
//   - A stranded layer is an open one of a former generation, until the engine's Init or its last Put: a container
//     lives in it that can't know. What its image lacks is fetched in the background.
//
// On disk, below the node's folder: mnt/<id>, where layers are mounted, and state/init.json.
//
// The protocol, as engines 17.06 to 27 speak it: HTTP POST over a unix socket to /GraphDriver.<Method>, JSON in and
// out. A failure is a text in the field Err, with status 200. ApplyDiff has its arguments in the query and a tar
// archive as body; Diff answers with a tar archive, and where it fails on the way the connection is cut, as the engine
// takes any orderly end for a whole archive.
//
// An engine repeats a call whose connection failed, for half a minute, so every method may be called twice; see package
// layers.
//
// The commands of package control are answered at the same socket, which is open to root only.
//
// Locks: a mount and its record have the lock of their layer, a layer's taken before those of its ancestors; the node's
// and those of layers come after it (package lockorder).
package graphdriver
