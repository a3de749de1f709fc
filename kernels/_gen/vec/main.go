// Command vec writes the assembly of the element-wise kernels, of the
// statistics and of quantization: quant, stat and vec files of package kernels.
package main

import (
	"flag"
	"fmt"
	"go/format"
	"log"
	"os"
	"path/filepath"

	"github.com/mmcloughlin/avo/build"
	"github.com/mmcloughlin/avo/pass"
	"github.com/mmcloughlin/avo/printer"
)

var files = []struct {
	name string
	emit func(*build.Context)
}{
	{"quant", quant},
	{"stat", stat},
	{"search", search},
	{"vec", vec},
	{"vec_move", move},
	{"vec_compare", compare},
}

// sources are generated Go files.
var sources = map[string]func() string{"vec_amd64.go": dispatch, "vec_compare_amd64.go": compareDispatch}

func main() {
	dir := flag.String("dir", ".", "directory of package kernels")
	flag.Parse()
	cfg := printer.Config{Name: "_gen/vec", Pkg: "kernels"}
	for _, f := range files {
		c := build.NewContext()
		c.ConstraintExpr("!noasm")
		f.emit(c)
		file, err := c.Result()
		if err != nil {
			build.LogError(log.Default(), err, 10)
			os.Exit(1)
		}
		if err := pass.Compile.Execute(file); err != nil {
			log.Fatal(f.name, ": ", err)
		}
		for _, out := range []struct {
			name string
			p    printer.Printer
		}{
			{f.name + "_amd64.s", printer.NewGoAsm(cfg)},
			{f.name + "_stubs_amd64.go", printer.NewStubs(cfg)},
		} {
			b, err := out.p.Print(file)
			if err == nil {
				err = os.WriteFile(filepath.Join(*dir, out.name), b, 0o644)
			}
			if err != nil {
				log.Fatal(err)
			}
		}
	}
	for name, text := range sources {
		if err := writeGo(filepath.Join(*dir, name), text()); err != nil {
			log.Fatal(err)
		}
	}
	if err := arm64(*dir); err != nil {
		log.Fatal(err)
	}
}

// writeGo writes a Go file, formatted, or assembly as it is.
func writeGo(name, text string) error {
	b := []byte(text)
	if filepath.Ext(name) == ".go" {
		var err error
		if b, err = format.Source(b); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return os.WriteFile(name, b, 0o644)
}
