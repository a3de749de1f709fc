//go:build !noort && (linux || darwin || windows) && (amd64 || arm64)

package ort

import (
	"debug/elf"
	"debug/macho"
	"debug/pe"
	"errors"
	"fmt"
	"os"
	"runtime"
)

// checkFile returns an error if a file is no whole library for this system and
// processor: what the loader says of those is obscure, and it maps parts that a
// file cut short does not have.
func checkFile(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return errors.Unwrap(err)
	}
	if !info.Mode().IsRegular() {
		return errors.New("it is no regular file")
	}
	f, err := os.Open(path)
	if err != nil {
		return errors.Unwrap(err)
	}
	defer f.Close()
	switch runtime.GOOS {
	case "windows":
		return checkPE(f)
	case "darwin":
		return checkMachO(f)
	}
	return checkELF(f, info.Size())
}

var errNoLibrary = errors.New("it is no shared library of this system")

func wrongProcessor(is any) error {
	return fmt.Errorf("it is for another processor (%v) than this program (%s)", is, runtime.GOARCH)
}

func checkELF(f *os.File, size int64) error {
	lib, err := elf.NewFile(f)
	if err != nil {
		return errNoLibrary
	}
	if want := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}[runtime.GOARCH]; lib.Machine != want {
		return wrongProcessor(lib.Machine)
	}
	if lib.Type != elf.ET_DYN || lib.Class != elf.ELFCLASS64 {
		return errNoLibrary
	}
	for _, p := range lib.Progs {
		if end := p.Off + p.Filesz; p.Type == elf.PT_LOAD && (end < p.Off || end > uint64(size)) {
			return errors.New("the file is cut short")
		}
	}
	return nil
}

func checkMachO(f *os.File) error {
	want := map[string]macho.Cpu{"amd64": macho.CpuAmd64, "arm64": macho.CpuArm64}[runtime.GOARCH]
	if fat, err := macho.NewFatFile(f); err == nil {
		for _, a := range fat.Arches {
			if a.Cpu == want && a.Type == macho.TypeDylib {
				return nil
			}
		}
		return wrongProcessor("none of the parts is for it")
	}
	lib, err := macho.NewFile(f)
	if err != nil || lib.Type != macho.TypeDylib {
		return errNoLibrary
	}
	if lib.Cpu != want {
		return wrongProcessor(lib.Cpu)
	}
	return nil
}

func checkPE(f *os.File) error {
	lib, err := pe.NewFile(f)
	if err != nil || lib.Characteristics&pe.IMAGE_FILE_DLL == 0 {
		return errNoLibrary
	}
	want := map[string]uint16{"amd64": pe.IMAGE_FILE_MACHINE_AMD64, "arm64": pe.IMAGE_FILE_MACHINE_ARM64}[runtime.GOARCH]
	if lib.Machine != want {
		return wrongProcessor(fmt.Sprintf("%#x", lib.Machine))
	}
	return nil
}
