package program

import (
	"io"
	"os"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"
)

// IsTerminal reports whether what is written to w is seen on a terminal.
func IsTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// Bars shows on a terminal how far transfers are, a bar for each. What is written to it comes above the bars.
type Bars struct {
	*mpb.Progress
	bars []*mpb.Bar
}

// NewBars returns a display on out, which nobody else may write to before End.
func NewBars(out io.Writer) *Bars { return &Bars{Progress: mpb.New(mpb.WithOutput(out))} }

// Transfer adds the bar of a transfer of so many bytes, with its speed: it is to be told by the methods Ewma….
func (b *Bars) Transfer(name string, bytes int64, options ...mpb.BarOption) *mpb.Bar {
	options = append(options,
		mpb.PrependDecorators(decor.Name(name, decor.WC{W: 14, C: decor.DindentRight})),
		mpb.AppendDecorators(decor.CountersKibiByte("% .1f / % .1f"), decor.Name(" "),
			decor.EwmaSpeed(decor.SizeB1024(0), "% .1f", 30)))
	bar := b.AddBar(max(bytes, 1), options...)
	b.bars = append(b.bars, bar)
	return bar
}

// End ends the display, so that others can write. Bars that are not complete go or stay as they are.
func (b *Bars) End(remove bool) {
	for _, bar := range b.bars {
		bar.Abort(remove) // no effect on one that is complete
	}
	b.Wait()
}
