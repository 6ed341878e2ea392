package publish

// The rows a catalog of a layer should have. A layer with more is split at folders; what is smaller than the least is
// not worth a catalog of its own.
const (
	mostRows  = 100_000
	leastRows = 1000
)

// split makes mounts of folders until no catalog below n has more than most rows, as far as folders allow, and calls
// made for each. It gives the rows that remain in n's catalog, n's own not counted. Where it splits depends on the tree
// alone.
func split(n *node, most, least int, made func(*node)) int {
	total := 0
	weights := map[*node]int{} // of folders that are no mounts
	children := n.sorted()
	for _, c := range children {
		total++
		if !c.isDir() {
			continue
		}
		below := split(c, most, least, made)
		if c.mount == nil {
			weights[c] = below
			total += below
		}
	}
	for total > most {
		var heaviest *node
		for _, c := range children {
			if w, ok := weights[c]; ok && w >= least && (heaviest == nil || w > weights[heaviest]) {
				heaviest = c
			}
		}
		if heaviest == nil {
			break // all files of one folder: nothing to split at
		}
		total -= weights[heaviest]
		delete(weights, heaviest)
		made(heaviest)
	}
	return total
}
