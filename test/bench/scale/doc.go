// Package scale measures what grows: nodes that start one image through one proxy, and images of many entries and
// layers.
//
// The words used here:
//
//   - A site is a repository with one image, a web server on loopback, and a proxy before it.
//   - A node is the client code of a real one: it composes the image, fetches what the start profile names if there is
//     one, and reads the files of a start, one after the other. Its cache is its own. What it lacks are an engine,
//     mounts and a network that is slow.
//   - Requests and bytes are counted where they arrive, by what each node's fetcher counts and by the web server. They
//     hardly depend on the machine, but for neighbours that are fetched ahead, which are more where readers wait
//     longer. Times do.
package scale
