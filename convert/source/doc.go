// Package source reads container images from where they are: a registry, the Docker daemon, an archive of docker save,
// or an OCI image layout.
//
// The words used here:
//
//   - A reference is what a user writes for an image: "docker://REGISTRY/REPOSITORY:TAG", "docker-daemon:NAME",
//     "docker-archive:FILE[:NAME]" or "oci:DIR[:TAG]"; without a scheme, a registry's.
//   - A blob is a file of the image as the source has it; its digest is the SHA-256 of those bytes. A layer's blob is
//     its archive, compressed or not; the diffID is the SHA-256 of the uncompressed archive.
//   - The platform is chosen where a reference leads to a list of images, one for each operating system and processor.
//
// What a source says is not trusted: sizes are bounded, and what is read from a blob counts only after its end was
// reached and its size, its digest and its diffID were found to be those the manifest and the configuration name
// ([Content.Finish]).
//
// A blob is read as a stream and never lies on this machine's disk. Where a registry's connection breaks, the rest is
// asked for.
package source
