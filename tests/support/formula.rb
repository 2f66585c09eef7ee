# What Homebrew gives a formula, as far as ours uses it: each call is kept in place of being done.
require "json"

KEPT = { declared: [], commands: [], folders: [], copied: {}, files: {}, scripts: {} }
PRESENT = []

class Place
  def initialize(text) = @text = text
  def to_s = @text
  def /(other) = Place.new("#{@text}/#{other}")
  def directory? = PRESENT.include?(@text)
  def glob(pattern) = [self/pattern]
  def mkpath = KEPT[:folders] << @text
  def write(text) = KEPT[:files][@text] = text
  def install(*names) = KEPT[:copied][@text] = names
  def write_env_script(target, **variables) = KEPT[:scripts][@text] = [target.to_s, variables]
end

class Service
  def name(**names) = KEPT[:service] = names
end

module Language
  module Python
    module Virtualenv
      def virtualenv_create(folder, python, system_site_packages: true)
        raise "it would see the packages of others" if system_site_packages

        system python, "-m", "venv", "--without-pip", folder
      end
    end
  end
end

class Formula
  module Process
    def self.kill(name, pid) = KEPT[:test] << ["kill", name, pid]
    def self.wait(pid) = KEPT[:test] << ["wait", pid]
  end

  class << self
    attr_reader :tested, :made

    def inherited(made) = @made = made
    def test(&block) = @tested = block
    def service(&block) = Service.new.instance_eval(&block)

    def method_missing(name, *words, **options, &block)
      KEPT[:declared] << [name, *words, *(options unless options.empty?)]
      block&.call
    end

    def respond_to_missing?(*) = true
  end

  %w[bin etc libexec opt_bin pkgetc prefix var testpath buildpath].each do |name|
    define_method(name) { Place.new("/#{name}") }
  end

  def system(*words) = KEPT[:commands] << words.map(&:to_s)
  def free_port = 12_345

  def spawn(*words)
    (KEPT[:test] ||= []) << ["spawn", *words.map(&:to_s)]
    77
  end

  def shell_output(command)
    KEPT[:test] << ["shell", command]
    '{"eval_count": 1, "response": "yes"}'
  end

  def assert_operator(left, name, right) = left.public_send(name, right) || raise("#{left} #{name} #{right}")
  def refute_empty(text) = text.empty? && raise("empty")
end

def commands
  yield
  KEPT[:commands].tap { KEPT[:commands] = [] }
end

def told
  formula = Formula.made.new
  KEPT[:alone] = commands { formula.install }
  KEPT[:fetch] = commands { formula.fetch }
  PRESENT << "/buildpath/wheels"
  KEPT[:install] = commands { formula.install }
  formula.instance_exec(&Formula.made.tested)
  JSON.generate(KEPT.merge(caveats: formula.caveats, ruby: RUBY_VERSION))
end
