# The C library: `make`, `make install PREFIX=/usr/local DESTDIR=`, `make uninstall`, `make clean`. GNU make, on Linux.
# Rust programs need none of this: they depend on the crate `graftwork`.

PREFIX ?= /usr/local
LIBDIR ?= $(PREFIX)/lib
INCLUDEDIR ?= $(PREFIX)/include
DOCDIR ?= $(PREFIX)/share/doc/graftwork

CARGO ?= cargo
OBJCOPY ?= objcopy
INSTALL ?= install
# What the library needs besides libc. Before glibc 2.34 also -ldl.
LIBS ?= -lm -lpthread

ifneq ($(shell uname -s),Linux)
$(error The C library can be packaged on Linux only; elsewhere use what `cargo build --release -p graftwork-ffi` makes)
endif

TARGET := $(or $(CARGO_TARGET_DIR),target)
RELEASE := $(TARGET)/$(if $(CARGO_BUILD_TARGET),$(CARGO_BUILD_TARGET)/)release
OUT := $(TARGET)/package

VERSION := $(shell sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
ABI := $(shell sed -n 's/^.define GW_ABI_VERSION //p' include/graftwork.h)
SYMBOLS := $(shell awk -F '[()]' '/^GW_API/ {n = split($$1, words, /[ *]/); print words[n]}' include/graftwork.h)

ARCHIVE := $(RELEASE)/libgraftwork_ffi.a
OBJECT := $(OUT)/graftwork.o
STATIC := $(OUT)/libgraftwork.a
SONAME := libgraftwork.so.$(ABI)
SHARED := $(OUT)/$(SONAME).$(VERSION)
PC := $(OUT)/graftwork.pc
CMAKE := $(OUT)/graftworkConfig.cmake $(OUT)/graftworkConfigVersion.cmake
EXAMPLES := $(wildcard ffi/examples/*.c ffi/examples/*.cpp)
TEXTS := LICENSE-APACHE LICENSE-MIT docs/c-api.md

.PHONY: all install uninstall clean force
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
	$(CC) -shared -static-libgcc $(LDFLAGS) -o $@ $(OBJECT) -Wl,-soname,$(SONAME) \
	    -Wl,--version-script=ffi/package/graftwork.map -Wl,-z,defs,-z,relro,-z,now,-z,nodelete,--gc-sections,--as-needed $(LIBS)

$(OUT)/$(SONAME) $(OUT)/libgraftwork.so: $(SHARED)
	ln -sf $(notdir $(SHARED)) $@

# Where things are depends on PREFIX, so these are made anew.
$(PC) $(CMAKE): $(OUT)/%: ffi/package/%.in force
	@mkdir -p $(OUT)
	sed -e 's|@PREFIX@|$(PREFIX)|g' -e 's|@VERSION@|$(VERSION)|g' -e 's|@SONAME@|$(SONAME)|g' \
	    -e 's|@LIBDIR@|$(patsubst $(PREFIX)/%,$${prefix}/%,$(LIBDIR))|g' \
	    -e 's|@INCLUDEDIR@|$(patsubst $(PREFIX)/%,$${prefix}/%,$(INCLUDEDIR))|g' \
	    -e 's|@INCLUDE_FROM_LIB@|$(shell realpath -m --relative-to=$(LIBDIR) $(INCLUDEDIR))|g' \
	    -e 's|@LIBS@|$(LIBS)|g' -e 's|@LIST@|$(shell echo $(LIBS) | tr ' ' ';')|g' $< >$@

install: all $(PC) $(CMAKE)
	$(INSTALL) -d $(DESTDIR)$(INCLUDEDIR) $(DESTDIR)$(LIBDIR)/pkgconfig $(DESTDIR)$(LIBDIR)/cmake/graftwork \
	    $(DESTDIR)$(DOCDIR)/examples
	$(INSTALL) -m 644 include/graftwork.h include/graftwork.hpp $(DESTDIR)$(INCLUDEDIR)
	$(INSTALL) -m 644 $(STATIC) $(DESTDIR)$(LIBDIR)
	$(INSTALL) -m 755 $(SHARED) $(DESTDIR)$(LIBDIR)
	ln -sf $(notdir $(SHARED)) $(DESTDIR)$(LIBDIR)/$(SONAME)
	ln -sf $(SONAME) $(DESTDIR)$(LIBDIR)/libgraftwork.so
	$(INSTALL) -m 644 $(PC) $(DESTDIR)$(LIBDIR)/pkgconfig
	$(INSTALL) -m 644 $(CMAKE) $(DESTDIR)$(LIBDIR)/cmake/graftwork
	$(INSTALL) -m 644 $(TEXTS) $(DESTDIR)$(DOCDIR)
	$(INSTALL) -m 644 $(EXAMPLES) $(DESTDIR)$(DOCDIR)/examples

uninstall:
	rm -f $(addprefix $(DESTDIR)$(INCLUDEDIR)/,graftwork.h graftwork.hpp)
	rm -f $(addprefix $(DESTDIR)$(LIBDIR)/,libgraftwork.a libgraftwork.so $(SONAME) $(notdir $(SHARED)))
	rm -f $(DESTDIR)$(LIBDIR)/pkgconfig/graftwork.pc
	rm -rf $(DESTDIR)$(LIBDIR)/cmake/graftwork $(DESTDIR)$(DOCDIR)

clean:
	rm -rf $(OUT)
