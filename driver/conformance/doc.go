// Package conformance reports whether a storage driver keeps layers as the Docker engine wants them kept: it drives any
// graph driver behind a plugin socket the way the engine does, and compares what it shows with what it should.
//
// # Words
//
// A driver answers the protocol docker.graphdriver/1.0: POST requests to /GraphDriver.<Method>, JSON in and out,
// archives as they are. It is reached through a Target, which also says what the driver at hand offers beyond the
// protocol: thin images, and ways to end and restart it.
//
// A layer is read-only once ApplyDiff gave it its content. A container has two read-write layers, as the engine makes
// them: one whose id ends with "-init", and the container's own on top. A chain is a layer and its ancestors. The view
// of a container is the folder Get gives.
//
// A thin image is a layer with one file, thin.json, that stands for the layers it names; ThinLayer pairs such a name
// with the layer's archive. So the rule for thin images is short: a chain must show the same whether a thin image
// stands in it or the layers the image stands for.
//
// # What is checked
//
// Each behaviour is a function of its own, run by Run under its name: of chains (chains.go), of what layers hold and
// how they come in and go out (layers.go, changes.go), and of the life of layers and drivers (life.go). Sequences does
// random work on a driver and compares every step with a plain model in memory and with a second driver.
//
// # How the driver is driven
//
// As by the engine's own client: a body of JSON has a length, an archive comes in chunks, "id" and "parent" of
// ApplyDiff stand unescaped in the query, a call that meets no server is repeated with whatever of its body is still
// unread, Diff is piped straight into ApplyDiff. The source of these habits is pkg/plugins/client.go and
// daemon/graphdriver/proxy.go of the engine.
//
// Views are changed and read from outside, as root, so a driver's mounts must be reachable from the test's process.
package conformance
