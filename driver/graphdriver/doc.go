// Package graphdriver speaks the Docker engine's storage-driver plugin protocol, docker.graphdriver/1.0: it decodes a
// call, calls the layer store, encodes the answer, and mounts what the store specifies.
//
// The protocol, as engines 17.06 to 27 speak it: HTTP POST over a unix socket to /GraphDriver.<Method>, JSON in and
// out. A failure is a text in the field Err, with status 200. ApplyDiff has its arguments in the query and a tar
// archive as body; Diff answers with a tar archive, and where it fails on the way the connection is cut, as the engine
// takes any orderly end for a whole archive.
//
// An engine repeats a call whose connection failed, for half a minute, so every method may be called twice; see package
// layers.
//
// One method is ours: /CvmfsGraphDriver.Status tells programs what the driver is doing. The socket is open to root
// only.
package graphdriver
