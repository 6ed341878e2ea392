// Package control is how programs speak to a running node: what they may ask it and have it do, for both sides.
//
// The words used here:
//
//   - A question has no effect and is answered at once.
//   - A task is something that the node does. It may take long: the node tells meanwhile how far it is, and ends it
//     when whoever asked has gone, or the node itself ends.
//   - A command is either.
//
// Both are HTTP over a unix socket that only root can open, at the path Prefix + the command's name, with a request in
// JSON, of which nothing at all stands for the zero value. Docker's plugin answers on the socket that the engine speaks
// to, which its supervisor keeps open while a server is replaced, and mounts the Handler of its node. The snapshotter
// has the Handler serve a socket of its own, which each server opens anew.
//
//   - A question, GET or POST, gets 200 and the answer in JSON, or another status and {"error": text}.
//   - A task, POST, gets 200 and lines of JSON: {"progress": …} as often as there is something to tell, and at last
//     {"answer": …} or {"error": text}. Lines that end without one of these broke off.
//
// Programs and nodes may be of different versions. Fields are added to what is told, and names never change their
// meaning. A node refuses a command, or a field of a request, that it doesn't know: ErrUnknown, which says to upgrade
// it. So nothing is ever done without what was asked besides.
package control
