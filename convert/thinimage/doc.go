// Package thinimage makes thin images and puts them where they are wanted.
//
// A thin image is the original image with its layers replaced by one, which holds nothing but the descriptor of package
// thin. Its configuration is the original's, word for word: what a container runs, as whom, where and with what, also
// fields this program doesn't know. Only the list of layers is another, and the history, whose steps now all made no
// layer but the last; and labels are added, which say what it is and of what.
//
// The same image and descriptor give the same bytes, whatever the time and the machine: times are the original's, and
// the layer's archive is stored in its gzip file without compression, so that no compressor decides on its digest.
//
// A thin image is a registry image of the original's kind, Docker's or OCI's. OCI's names its original in annotations,
// and refers to it as its subject if both are in one registry. A registry that refuses this gets the image without a
// subject.
package thinimage
