package listing

import (
	"cmp"
	"io"
	"slices"
	"strconv"
)

// object is a JSON object whose texts are any bytes. It is written in one line, with sorted keys, as
// json.dumps(…, sort_keys=True, ensure_ascii=False) of Python would.
type object []field

type field struct {
	name string
	json []byte
}

func (o *object) raw(name string, json []byte) { *o = append(*o, field{name, json}) }

func (o *object) text(name, value string) { o.raw(name, appendJSON(nil, value)) }

func (o *object) number(name string, value int64) { o.raw(name, strconv.AppendInt(nil, value, 10)) }

func (o *object) object(name string, value object) { o.raw(name, value.append(nil)) }

// list is an array of values that are JSON already.
func (o *object) list(name string, values [][]byte) {
	b := []byte{'['}
	for i, v := range values {
		if i > 0 {
			b = append(b, ", "...)
		}
		b = append(b, v...)
	}
	o.raw(name, append(b, ']'))
}

func (o object) append(b []byte) []byte {
	slices.SortFunc(o, func(a, b field) int { return cmp.Compare(a.name, b.name) })
	b = append(b, '{')
	for i, f := range o {
		if i > 0 {
			b = append(b, ", "...)
		}
		b = append(append(appendJSON(b, f.name), ": "...), f.json...)
	}
	return append(b, '}')
}

// WriteTexts writes an object of texts, as which any bytes are taken, in one line.
func WriteTexts(w io.Writer, texts map[string]string) error {
	var o object
	for name, value := range texts {
		o.text(name, value)
	}
	return o.write(w)
}

func (o object) write(w io.Writer) error {
	_, err := w.Write(append(o.append(nil), '\n'))
	return err
}
