# What `make install` and `make deb` put where, beside the program.
find_program(GZIP gzip REQUIRED)

set(manual ${CMAKE_BINARY_DIR}/man/lararium.1.gz)
add_custom_command(OUTPUT ${manual}
  COMMAND ${CMAKE_COMMAND} -E make_directory ${CMAKE_BINARY_DIR}/man
  COMMAND ${GZIP} -9nc ${CMAKE_SOURCE_DIR}/man/lararium.1 > ${manual}
  DEPENDS ${CMAKE_SOURCE_DIR}/man/lararium.1 VERBATIM)
set(generated ${manual})

configure_file(cmake/debian/changelog.in ${CMAKE_BINARY_DIR}/changelog @ONLY)
set(changelog ${CMAKE_BINARY_DIR}/changelog.gz)
add_custom_command(OUTPUT ${changelog}
  COMMAND ${GZIP} -9nc ${CMAKE_BINARY_DIR}/changelog > ${changelog}
  DEPENDS ${CMAKE_BINARY_DIR}/changelog VERBATIM)
list(APPEND generated ${changelog})

# The program writes its own completions, so that they never lag behind its options.
foreach(shell bash zsh fish)
  set(script ${CMAKE_BINARY_DIR}/completions/lararium.${shell})
  add_custom_command(OUTPUT ${script}
    COMMAND ${CMAKE_COMMAND} -E make_directory ${CMAKE_BINARY_DIR}/completions
    COMMAND lararium completion ${shell} > ${script}
    DEPENDS lararium VERBATIM)
  list(APPEND generated ${script})
endforeach()
add_custom_target(lararium_extras ALL DEPENDS ${generated})

install(FILES ${manual} DESTINATION ${CMAKE_INSTALL_MANDIR}/man1)
install(FILES ${CMAKE_BINARY_DIR}/completions/lararium.bash RENAME lararium
        DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions)
install(FILES ${CMAKE_BINARY_DIR}/completions/lararium.zsh RENAME _lararium
        DESTINATION ${CMAKE_INSTALL_DATADIR}/zsh/vendor-completions)
install(FILES ${CMAKE_BINARY_DIR}/completions/lararium.fish RENAME lararium.fish
        DESTINATION ${CMAKE_INSTALL_DATADIR}/fish/vendor_completions.d)
install(FILES README.md cmake/debian/copyright ${changelog} DESTINATION ${CMAKE_INSTALL_DOCDIR})
file(GLOB pages ${CMAKE_SOURCE_DIR}/docs/*.md)
list(FILTER pages EXCLUDE REGEX /development[.]md$)
install(FILES ${pages}
        DESTINATION ${CMAKE_INSTALL_DOCDIR}/docs) # where README.md says

set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME lararium)
set(CPACK_PACKAGE_CONTACT "The Lararium developers <developers@lararium.example>")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "see inside running QEMU/KVM virtual machines from outside")
set(CPACK_DEBIAN_PACKAGE_DESCRIPTION
    "Lararium attaches to a virtual machine that is already running under QEMU, or\n\
opens a dump of one, and shows its processes, modules, files, sockets and\n\
more. It needs no agent in the guest, no changes to QEMU and no symbol files.")
set(CPACK_DEBIAN_PACKAGE_SECTION admin)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_CONTROL_EXTRA ${CMAKE_SOURCE_DIR}/cmake/debian/postrm)
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_STRIP_FILES ON)
set(CPACK_INSTALL_DEFAULT_DIRECTORY_PERMISSIONS
    OWNER_READ OWNER_WRITE OWNER_EXECUTE GROUP_READ GROUP_EXECUTE WORLD_READ WORLD_EXECUTE)
include(CPack)
