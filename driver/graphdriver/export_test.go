package graphdriver

// Linger is how long a layer stays mounted that nobody uses any more.
const Linger = linger
