package passes

import (
	"bufio"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// TestDefinitions holds the tables against the history of all definitions.
func TestDefinitions(t *testing.T) {
	f, err := os.Open("testdata/definitions.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	known := map[change]bool{}
	for s := bufio.NewScanner(f); s.Scan(); {
		if strings.HasPrefix(s.Text(), "#") {
			continue
		}
		var c change
		if _, err := fmt.Sscan(s.Text(), &c.Op, &c.To); err != nil {
			t.Fatalf("%q: %v", s.Text(), err)
		}
		known[c] = true
		same, adapted := slices.Contains(unchanged[c.Op], c.To), adapters[c] != nil
		if same == adapted {
			t.Errorf("%s %d: listed as unchanged: %v, has an adapter: %v", c.Op, c.To, same, adapted)
		}
	}
	if len(known) < 300 {
		t.Fatalf("only %d definitions", len(known))
	}
	for op, list := range unchanged {
		for _, to := range list {
			if !known[change{op, to}] {
				t.Errorf("%s was not defined anew in %d", op, to)
			}
		}
	}
	for c := range adapters {
		if !known[c] {
			t.Errorf("%s was not defined anew in %d", c.Op, c.To)
		}
	}
}
