package exec

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/onnxq/onnxq/graph"
	"github.com/onnxq/onnxq/graph/onnxfile"
	"github.com/onnxq/onnxq/ops"
	"github.com/onnxq/onnxq/tensor"
)

// TestConformance runs the ONNX backend node cases: those that the lists in
// ONNXQ_SHARED/conformance/lists name, then all. ONNXQ_CONFORMANCE is the folder that
// gen_node.py beside the lists wrote. The cases in testdata/conformance.skip
// are expected to fail, for the reason given there.
func TestConformance(t *testing.T) {
	dir := os.Getenv("ONNXQ_CONFORMANCE")
	if dir == "" {
		t.Skip("ONNXQ_CONFORMANCE does not name the folder of the ONNX backend cases: no conformance test")
	}
	lists, err := filepath.Glob(filepath.Join(sharedDir(), "conformance", "lists", "*.txt"))
	if err != nil || len(lists) == 0 {
		t.Skipf("no lists of cases in %s: no conformance test", sharedDir())
	}
	cases := readIndex(t, filepath.Join(dir, "index.json"))
	skip := readSkips(t, "testdata/conformance.skip")
	seen := map[string]bool{}
	for _, list := range append(lists, "all") {
		name := strings.TrimSuffix(filepath.Base(list), ".txt")
		t.Run(name, func(t *testing.T) {
			ids := []string{}
			if list != "all" {
				ids = readLines(t, list)
			} else {
				for id, c := range cases {
					if c.Kind == "node" {
						ids = append(ids, id)
					}
				}
				slices.Sort(ids)
			}
			passed, total := 0, 0
			for _, id := range ids {
				total++
				seen[id] = true
				c, ok := cases[id]
				if !ok {
					t.Errorf("%s: no such case", id)
					continue
				}
				err := runCase(filepath.Join(dir, c.Kind, id), c)
				reason, skipped := skip[id]
				switch {
				case err == nil && skipped:
					t.Errorf("%s passes, but is to be skipped: %s", id, reason)
				case err == nil:
					passed++
				case skipped:
					t.Logf("skipped %s: %s (%v)", id, reason, err)
				default:
					t.Errorf("%s: %v", id, err)
				}
			}
			t.Logf("%d of %d cases pass", passed, total)
		})
	}
	for id := range skip {
		if !seen[id] {
			t.Errorf("skipped case %s is in no list", id)
		}
	}
}

func sharedDir() string {
	if dir := os.Getenv("ONNXQ_SHARED"); dir != "" {
		return dir
	}
	return filepath.Join("..", "..", "shared")
}

// conformanceCase is an entry of index.json.
type conformanceCase struct {
	Name, Kind string
	Rtol, Atol float64
	Sets       int
}

func readIndex(t *testing.T, path string) map[string]conformanceCase {
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var list []conformanceCase
	if err := json.Unmarshal(b, &list); err != nil {
		t.Fatal(err)
	}
	cases := map[string]conformanceCase{}
	for _, c := range list {
		cases[c.Name] = c
	}
	return cases
}

func readLines(t *testing.T, path string) []string {
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for s := bufio.NewScanner(strings.NewReader(string(b))); s.Scan(); {
		if line := strings.TrimSpace(s.Text()); line != "" && !strings.HasPrefix(line, "#") {
			lines = append(lines, line)
		}
	}
	return lines
}

// readSkips reads lines of the form "case: reason".
func readSkips(t *testing.T, path string) map[string]string {
	skips := map[string]string{}
	for _, line := range readLines(t, path) {
		id, reason, ok := strings.Cut(line, ":")
		if !ok || strings.TrimSpace(reason) == "" {
			t.Fatalf("%s: no reason for %q", path, line)
		}
		skips[id] = strings.TrimSpace(reason)
	}
	return skips
}

// runCase computes every data set of a case and returns what differs first.
func runCase(dir string, c conformanceCase) error {
	m, err := onnxfile.Open(filepath.Join(dir, "model.onnx"))
	if err != nil {
		return err
	}
	defer m.Close()
	if _, err := ops.Infer(m); err != nil {
		return err
	}
	p, err := Compile(m, Options{})
	if err != nil {
		return err
	}
	for set := range c.Sets {
		at := filepath.Join(dir, fmt.Sprintf("test_data_set_%d", set))
		feeds := map[string]ops.Data{}
		for i, v := range m.Graph.Inputs() {
			d, err := readData(filepath.Join(at, fmt.Sprintf("input_%d.pb", i)), v.Type)
			if err != nil {
				return err
			}
			feeds[v.Name()] = d
		}
		got, err := p.NewSession(SessionOptions{Threads: 2}).Run(context.Background(), feeds, nil, nil)
		if err != nil {
			return err
		}
		for i, v := range m.Graph.Outputs() {
			want, err := readData(filepath.Join(at, fmt.Sprintf("output_%d.pb", i)), v.Type)
			if err != nil {
				return err
			}
			if err := sameData(got[i], want, c.Rtol, c.Atol); err != nil {
				return fmt.Errorf("output %d: %w", i, err)
			}
		}
	}
	return nil
}

// readData reads a .pb file that holds a value of the given type.
func readData(path string, typ graph.Type) (ops.Data, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	d, err := decodeData(b, typ)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Base(path), err)
	}
	return d, nil
}

// decodeData decodes a TensorProto, SequenceProto or OptionalProto; in the
// last two, field 3 holds tensors, field 5 sequences and field 7 optionals.
func decodeData(b []byte, typ graph.Type) (ops.Data, error) {
	if typ.Kind != graph.KindSequence && typ.Kind != graph.KindOptional {
		_, t, err := onnxfile.DecodeTensor(b)
		return t, err
	}
	seq := ops.Sequence{}
	for len(b) > 0 {
		key, n := binary.Uvarint(b)
		if n <= 0 {
			return nil, errors.New("damaged file")
		}
		b = b[n:]
		v, n := binary.Uvarint(b)
		if n <= 0 {
			return nil, errors.New("damaged file")
		}
		b = b[n:]
		if key&7 == 0 {
			continue
		}
		if key&7 != 2 || v > uint64(len(b)) {
			return nil, errors.New("damaged file")
		}
		if field := key >> 3; field == 3 || field == 5 || field == 7 {
			inner := graph.Type{}
			if typ.Inner != nil {
				inner = *typ.Inner
			}
			d, err := decodeData(b[:v], inner)
			if err != nil {
				return nil, err
			}
			seq = append(seq, d)
		}
		b = b[v:]
	}
	if typ.Kind == graph.KindSequence {
		return seq, nil
	}
	o := &ops.Optional{}
	if len(seq) > 0 {
		o.Elem = seq[0]
	}
	return o, nil
}

// sameData compares as numpy's allclose does: NaNs are equal, and numbers
// differ by at most atol + rtol·|want|.
func sameData(got, want ops.Data, rtol, atol float64) error {
	switch w := want.(type) {
	case ops.Sequence:
		g, ok := got.(ops.Sequence)
		if !ok || len(g) != len(w) {
			return fmt.Errorf("got %v, want a sequence of %d", got, len(w))
		}
		for i := range w {
			if err := sameData(g[i], w[i], rtol, atol); err != nil {
				return fmt.Errorf("entry %d: %w", i, err)
			}
		}
		return nil
	case *ops.Optional:
		g, ok := got.(*ops.Optional)
		if !ok || (g.Elem == nil) != (w.Elem == nil) {
			return fmt.Errorf("got %v, want %v", got, want)
		}
		if w.Elem == nil {
			return nil
		}
		return sameData(g.Elem, w.Elem, rtol, atol)
	}
	w, _ := want.(*tensor.Tensor)
	g, ok := got.(*tensor.Tensor)
	if !ok || g.DType() != w.DType() || tensor.ShapeString(g.Shape()) != tensor.ShapeString(w.Shape()) {
		return fmt.Errorf("got %v, want %v", got, want)
	}
	if !w.DType().Convertible() {
		if !g.Equal(w) {
			return fmt.Errorf("%v differs", w)
		}
		return nil
	}
	a, err := tensor.Float64s(g)
	if err != nil {
		return err
	}
	b, err := tensor.Float64s(w)
	if err != nil {
		return err
	}
	for i, x := range b {
		if a[i] != x && !(math.IsNaN(a[i]) && math.IsNaN(x)) && !(math.Abs(a[i]-x) <= atol+rtol*math.Abs(x)) {
			return fmt.Errorf("element %d of %v is %v, want %v", i, w, a[i], x)
		}
	}
	return nil
}
