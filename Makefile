# The C library: `make`, `make install PREFIX=/usr/local DESTDIR=`, `make uninstall`, `make dist`, `make clean`. GNU make, on Linux.
# Rust programs need none of this: they depend on the crate `graftwork`.

PREFIX ?= /usr/local
LIBDIR ?= $(PREFIX)/lib
INCLUDEDIR ?= $(PREFIX)/include
DOCDIR ?= $(PREFIX)/share/doc/graftwork
# What graftwork.pc calls its prefix: another one where all will be moved.
PC_PREFIX ?= $(PREFIX)

CARGO ?= cargo
OBJCOPY ?= objcopy
INSTALL ?= install
# What the library needs besides libc. Before glibc 2.34 also -ldl.
LIBS ?= -lm -lpthread
# Panics unwind by it. Empty: the system's libgcc_s.so.1.
LIBGCC ?= -static-libgcc

ifneq ($(shell uname -s),Linux)
$(error The C library can be packaged on Linux only; elsewhere use what `cargo build --release -p graftwork-ffi` makes)
endif

TARGET := $(or $(CARGO_TARGET_DIR),target)
RELEASE := $(TARGET)/$(if $(CARGO_BUILD_TARGET),$(CARGO_BUILD_TARGET)/)release
# Not `package`, where cargo puts crates.
OUT := $(TARGET)/libgraftwork

VERSION := $(shell sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
ABI := $(shell sed -n 's/^.define GW_ABI_VERSION //p' include/graftwork.h)
# Bytes of a pointer of the target.
POINTER := $(shell printf __SIZEOF_POINTER__ | $(CC) -E -P -x c -)
SYMBOLS := $(shell awk -F '[()]' '/^GW_API/ {n = split($$1, words, /[ *]/); print words[n]}' include/graftwork.h)

ARCHIVE := $(RELEASE)/libgraftwork_ffi.a
OBJECT := $(OUT)/graftwork.o
STATIC := $(OUT)/libgraftwork.a
SONAME := libgraftwork.so.$(ABI)
SHARED := $(OUT)/$(SONAME).$(VERSION)
PC := $(OUT)/graftwork.pc
CMAKE := $(OUT)/graftworkConfig.cmake $(OUT)/graftworkConfigVersion.cmake
EXAMPLES := $(wildcard ffi/examples/*.c ffi/examples/*.cpp)
HEADERS := include/graftwork.h include/graftwork.hpp
TEXTS := LICENSE-APACHE LICENSE-MIT THIRD-PARTY.md docs/c-api.md

# Where things are put; names may have spaces.
TO_INCLUDE = $(DESTDIR)$(INCLUDEDIR)
TO_LIB = $(DESTDIR)$(LIBDIR)
TO_DOC = $(DESTDIR)$(DOCDIR)

.PHONY: all install uninstall dist clean force
.DELETE_ON_ERROR:

all: $(STATIC) $(SHARED) $(OUT)/$(SONAME) $(OUT)/libgraftwork.so

# Cargo knows whether there is anything to do.
$(ARCHIVE): force
	$(CARGO) build --release -p graftwork-ffi

# One object from all crates and what they use of the standard library. Only the header's functions stay visible, so that
# nothing clashes with other Rust in the same program. Section groups are dissolved because a linker would look for their
# names in other objects, visible or not. The standard library's objects carry bitcode, which linkers with LTO would read.
$(OBJECT): $(ARCHIVE) include/graftwork.h Makefile
	@mkdir -p $(OUT)
	printf '%s\n' $(SYMBOLS) >$(OUT)/symbols
	$(LD) -r --gc-sections --force-group-allocation $(addprefix --require-defined=,$(SYMBOLS)) -o $@ $(ARCHIVE)
	$(OBJCOPY) --keep-global-symbols=$(OUT)/symbols --strip-unneeded --wildcard \
	    --keep-symbol='_ZN*' --keep-symbol='_R*' --remove-section=.llvmbc --remove-section=.llvmcmd $@

$(STATIC): $(OBJECT)
	rm -f $@
	$(AR) rcsD $@ $(OBJECT)

# Never unloaded: statics of the standard library and of dependencies are not freed, and would be lost at each dlclose.
$(SHARED): $(OBJECT) ffi/package/graftwork.map
	$(CC) -shared $(LIBGCC) $(LDFLAGS) -o $@ $(OBJECT) -Wl,-soname,$(SONAME) \
	    -Wl,--version-script=ffi/package/graftwork.map -Wl,-z,defs,-z,relro,-z,now,-z,nodelete,--gc-sections,--as-needed $(LIBS)

$(OUT)/$(SONAME) $(OUT)/libgraftwork.so: $(SHARED)
	ln -sf $(notdir $(SHARED)) $@

# Where things are depends on PREFIX, so these are made anew.
$(PC) $(CMAKE): $(OUT)/%: ffi/package/%.in force
	@mkdir -p $(OUT)
	sed -e 's|@PREFIX@|$(PC_PREFIX)|g' -e 's|@VERSION@|$(VERSION)|g' -e 's|@SONAME@|$(SONAME)|g' \
	    -e 's|@LIBDIR@|$(patsubst $(PREFIX)/%,$${prefix}/%,$(LIBDIR))|g' \
	    -e 's|@INCLUDEDIR@|$(patsubst $(PREFIX)/%,$${prefix}/%,$(INCLUDEDIR))|g' \
	    -e 's|@INCLUDE_FROM_LIB@|$(shell realpath -m --relative-to=$(LIBDIR) $(INCLUDEDIR))|g' \
	    -e 's|@ABI@|$(ABI)|g' -e 's|@POINTER@|$(POINTER)|g' -e 's|@LIBS@|$(LIBS)|g' -e 's|@LIST@|$(shell echo $(LIBS) | tr ' ' ';')|g' $< >$@

install: all $(PC) $(CMAKE)
	$(INSTALL) -d "$(TO_INCLUDE)" "$(TO_LIB)/pkgconfig" "$(TO_LIB)/cmake/graftwork" "$(TO_DOC)/examples"
	$(INSTALL) -m 644 $(HEADERS) "$(TO_INCLUDE)"
	$(INSTALL) -m 644 $(STATIC) "$(TO_LIB)"
	$(INSTALL) -m 755 $(SHARED) "$(TO_LIB)"
	ln -sf $(notdir $(SHARED)) "$(TO_LIB)/$(SONAME)"
	ln -sf $(SONAME) "$(TO_LIB)/libgraftwork.so"
	$(INSTALL) -m 644 $(PC) "$(TO_LIB)/pkgconfig"
	$(INSTALL) -m 644 $(CMAKE) "$(TO_LIB)/cmake/graftwork"
	$(INSTALL) -m 644 $(TEXTS) "$(TO_DOC)"
	$(INSTALL) -m 644 $(EXAMPLES) "$(TO_DOC)/examples"

uninstall:
	for file in $(notdir $(HEADERS)); do rm -f "$(TO_INCLUDE)/$$file"; done
	for file in libgraftwork.a libgraftwork.so $(SONAME) $(notdir $(SHARED)); do rm -f "$(TO_LIB)/$$file"; done
	rm -f "$(TO_LIB)/pkgconfig/graftwork.pc"
	for file in $(notdir $(CMAKE)); do rm -f "$(TO_LIB)/cmake/graftwork/$$file"; done
	for file in $(notdir $(TEXTS)) $(EXAMPLES:ffi/%=%); do rm -f "$(TO_DOC)/$$file"; done
	-rmdir "$(TO_LIB)/cmake/graftwork" "$(TO_DOC)/examples" "$(TO_DOC)"

# An archive for elsewhere, dist/graftwork-VERSION-TARGET.tar.gz.
dist:
	sh scripts/dist.sh

clean:
	rm -rf $(OUT)
