package onnxq_test

import (
	"bytes"
	"flag"
	"go/ast"
	"go/doc"
	"go/format"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files")

// TestAPI compares the exported names of this package with
// testdata/api.golden. What stands there is a promise to importers.
func TestAPI(t *testing.T) {
	fset := token.NewFileSet()
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	var files []*ast.File
	for _, e := range entries {
		if keep(e) {
			f, err := parser.ParseFile(fset, e.Name(), nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, f)
		}
	}
	p, err := doc.NewFromFiles(fset, files, module)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	put := func(n ast.Node) {
		if f, ok := n.(*ast.FuncDecl); ok {
			f.Body = nil
		}
		if err := format.Node(&b, fset, n); err != nil {
			t.Fatal(err)
		}
		b.WriteString("\n\n")
	}
	values := func(list []*doc.Value) {
		for _, v := range list {
			if v.Decl.Tok == token.CONST {
				put(v.Decl)
			} else {
				b.WriteString("var " + strings.Join(v.Names, ", ") + "\n\n")
			}
		}
	}
	funcs := func(list []*doc.Func) {
		for _, f := range list {
			put(f.Decl)
		}
	}
	values(p.Consts)
	values(p.Vars)
	funcs(p.Funcs)
	for _, typ := range p.Types {
		put(typ.Decl)
		values(typ.Consts)
		values(typ.Vars)
		funcs(typ.Funcs)
		funcs(typ.Methods)
	}
	const path = "testdata/api.golden"
	if *update {
		if err := os.WriteFile(path, b.Bytes(), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b.Bytes(), want) {
		t.Error("the exported names changed; if that is meant: go test . -run TestAPI -update")
		was, is := strings.Split(string(want), "\n"), strings.Split(b.String(), "\n")
		for _, line := range is {
			if !slices.Contains(was, line) {
				t.Logf("new: %s", line)
			}
		}
		for _, line := range was {
			if !slices.Contains(is, line) {
				t.Logf("gone: %s", line)
			}
		}
	}
}

func keep(e fs.DirEntry) bool {
	return strings.HasSuffix(e.Name(), ".go") && !strings.HasSuffix(e.Name(), "_test.go")
}
