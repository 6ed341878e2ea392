// Package api is what a node and the service that publishes its layers say to each other: package pushback is the node,
// package receive the service.
//
// The words used here:
//
//   - A layer's archive is a gzip file of a tar file, whiteouts being .wh. files. The layer's digest is the SHA-256 of
//     the gzip file, its diffID that of the tar file; here both are written as 64 lower-case hex digits.
//   - The status of a layer is one of four words. A program of 2017 asks for the word alone, as text; others get an
//     [Answer] as JSON.
//   - The status URL is the address that a layer's digest is put behind to ask for its status. Whatever else a service
//     answers lies beside it: for https://host/status, a layer is sent to https://host/layers/DIGEST.
//
// A layer comes to the service through a bucket of an S3 store, the key being the digest behind a prefix and what is
// told of the layer being metadata of the object; or in requests PUT /layers/DIGEST, each of which says by
// Content-Range which part of the archive it carries, and goes on where the former ended. HEAD /layers/DIGEST answers
// in Upload-Offset how much is there; 404 means nothing. A part that doesn't begin there is refused by 409.
package api

// What is put behind the address of a service.
const (
	StatusPath = "/status/" // and a digest
	LayersPath = "/layers/" // and a digest
	EventsPath = "/events"  // where a store tells of new objects; "/" is the same
)

// DefaultBucket holds layers where a configuration names no other; so did it in 2017.
const DefaultBucket = "layers"

// ContentType is that of a layer's archive, in a store and in requests.
const ContentType = "application/x-gzip"

// Metadata of a layer's object in a store, as it is named there without "x-amz-meta-".
const (
	MetaNode   = "node"    // who made the layer
	MetaImage  = "image"   // origin of the image that it was made on
	MetaDiffID = "diff-id" // hex
)

// Headers of requests and answers.
const (
	HeaderNode   = "X-Cvmfs-Node"
	HeaderImage  = "X-Cvmfs-Image"
	HeaderDiffID = "X-Cvmfs-Diff-Id"
	HeaderOffset = "Upload-Offset"  // bytes of the archive that are there
	HeaderFolder = "X-Cvmfs-Folder" // of a question for a status: the folder of the bucket that the layer is in, as a path of an address
)
