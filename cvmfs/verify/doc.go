// Package verify fetches all that a revision of a repository consists of, as a host would, and says what of it is bad.
//
// It is a reader's view: what counts is what servers deliver through the proxies in use. An object is bad if no server
// delivers it as its name and the catalog say. What only some servers lack or spoil is no problem here, as fail-over
// hides it from readers, but it is counted. (What a publisher's storage must have besides, package publish/check
// knows.)
//
// Nothing is kept but the catalogs that the client keeps. Objects are read in bounded buffers, several at once, each
// once.
package verify
